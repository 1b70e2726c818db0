"""Where tasks run: the interface of an executor, and the executor that runs tasks in this process."""

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Final, Generic, Literal, Protocol, TypeVar

from pipeline.errors import PipelineError
from pipeline.monitoring.monitor import Monitor

T = TypeVar("T")
R = TypeVar("R")

THIS_PROCESS = "this process"

CGROUP_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""The memory limit of a container: cgroups of version 2 and of version 1."""

MAX_LOST_IN_A_ROW: Final = 32
"""Per worker. A worker that dies takes the tasks of all its threads with it."""


@dataclass(frozen=True)
class Done(Generic[R]):
    """The result of a task, and the address of the worker that ran it."""

    result: R
    worker: str


@dataclass(frozen=True)
class Lost(Generic[T]):
    """The item of a task that has no result, and why: it ended the workers that ran it, `workers_lost` in a row.

    `crash`: their processes died. `memory`: they were ended because their memory was full. `timeout`: the task did not
    end within its limit, and its worker was killed. Dask also blames tasks that shared a worker with the guilty one:
    see `tried_alone`.
    """

    item: T
    reason: Literal["crash", "memory", "timeout"]
    workers_lost: int

    def failure(self, limit_s: float) -> str:
        """Return the reason in the ledger for the recording that was read when the task, with its limit, was lost."""
        if self.reason == "crash":
            return "crash: the process that reads it dies"
        if self.reason == "memory":
            return "memory: reading it takes more memory than a worker has"
        return f"timeout: reading it takes longer than {limit_s:.0f} s"


class Executor(Protocol):
    """Runs a function over items."""

    @property
    def workers(self) -> int:
        """Number of workers now."""
        ...

    @property
    def threads(self) -> int:
        """Number of threads of all workers now."""
        ...

    @property
    def monitor(self) -> Monitor:
        """Where the run is reported and can be watched."""
        ...

    def run(
        self, function: Callable[[T], R], items: Iterable[T], limit_s: Callable[[T], float] | None = None
    ) -> Generator[Done[R] | Lost[T], None, None]:
        """Yield one outcome per item, in the order in which they arrive.

        Items are taken as workers become free. An error that a task raises is raised here and ends the run; a task
        whose workers died, or that takes longer than `limit_s` of its item, is yielded as `Lost`, and the run
        continues.
        """
        ...

    def on_each_worker(self, function: Callable[[], R]) -> dict[str, R | BaseException]:
        """Call `function` once on each worker; return its result or its error by the worker's address."""
        ...

    def worker_memory_bytes(self) -> int | None:
        """Return the memory limit of the smallest worker, None where workers have no limit."""
        ...

    def close(self) -> None:
        """Stop what was started; a later call starts it again."""
        ...


class SerialExecutor:
    """Runs tasks one after the other in this process. It loses none: a task that crashes or hangs ends the run."""

    workers = threads = 1

    def __init__(self) -> None:
        self.monitor = Monitor()

    def run(
        self,
        function: Callable[[T], R],
        items: Iterable[T],
        limit_s: Callable[[T], float] | None = None,  # noqa: ARG002 a thread cannot be ended from outside
    ) -> Generator[Done[R] | Lost[T], None, None]:
        """Yield the results in the order of the items."""
        for item in items:
            yield Done(function(item), THIS_PROCESS)

    def on_each_worker(self, function: Callable[[], R]) -> dict[str, R | BaseException]:
        """Call `function` in this process; its error is raised."""
        return {THIS_PROCESS: function()}

    def worker_memory_bytes(self) -> int | None:
        """Return the memory of the machine, or of the container that this process runs in."""
        limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
        for file in CGROUP_LIMITS:
            with suppress(OSError, ValueError):  # a container without a limit has the word "max"
                limits.append(int(file.read_text(encoding="ascii")))
        return min(limits)

    def close(self) -> None:
        """Do nothing: nothing was started."""


def completed(outcomes: Generator[Done[R] | Lost[T], None, None]) -> Iterator[Done[R]]:
    """Yield the results of `Executor.run`; raise PipelineError at the first task that was lost."""
    with closing(outcomes):
        for outcome in outcomes:
            if isinstance(outcome, Lost):
                raise lost_for_good(outcome)
            yield outcome


def lost_for_good(lost: Lost[T]) -> PipelineError:
    """Return the error of a task that cannot be done and that the run needs."""
    return PipelineError(
        f"{shorten(str(lost.item), 80)} killed {lost.workers_lost} workers in a row, probably by running out of "
        "memory; give the workers more memory or make store.chunks_per_shard smaller, then run the same command "
        "again: finished shards are kept"
    )


def tried_alone(
    executor: Executor, function: Callable[[T], R], items: Iterable[T], limit_s: Callable[[T], float]
) -> Iterator[Done[R] | Lost[T]]:
    """Yield one outcome per item. One that is `Lost` was lost a second time, while nothing else ran.

    That is certain, while a task that is lost beside others may have shared a worker with the one that ended it.
    """
    suspects: list[T] = []
    for outcome in surviving(executor, function, items, limit_s):
        if isinstance(outcome, Lost):
            suspects.append(outcome.item)
        else:
            yield outcome
    for item in suspects:
        yield from executor.run(function, [item], limit_s)


def surviving(
    executor: Executor, function: Callable[[T], R], items: Iterable[T], limit_s: Callable[[T], float]
) -> Iterator[Done[R] | Lost[T]]:
    """Yield the outcomes of `executor.run`; raise PipelineError where too many tasks in a row are lost.

    A few items that end their workers are to be expected. Where everything does, the workers are at fault.
    """
    lost = 0
    with closing(executor.run(function, items, limit_s)) as outcomes:
        for outcome in outcomes:
            yield outcome
            lost = lost + 1 if isinstance(outcome, Lost) else 0
            if isinstance(outcome, Lost) and lost >= MAX_LOST_IN_A_ROW * max(1, executor.workers):
                raise PipelineError(
                    f"{lost} tasks in a row ended their workers, the last one: {outcome.reason}; see whether the "
                    "workers have enough memory and can read the files, then run the same command again: finished "
                    "shards are kept"
                )
