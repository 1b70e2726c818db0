"""Where tasks run: the interface of an executor, and the executor that runs tasks in this process."""

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from textwrap import shorten
from typing import Generic, Literal, Protocol, TypeVar

from pipeline.errors import PipelineError
from pipeline.monitoring.monitor import Monitor

T = TypeVar("T")
R = TypeVar("R")

THIS_PROCESS = "this process"


@dataclass(frozen=True)
class Done(Generic[R]):
    """The result of a task, and the address of the worker that ran it."""

    result: R
    worker: str


@dataclass(frozen=True)
class Lost(Generic[T]):
    """The item of a task that has no result, and why.

    `crash`: every worker that ran the task died, `workers_lost` of them in a row.
    """

    item: T
    reason: Literal["crash"]
    workers_lost: int


class Executor(Protocol):
    """Runs a function over items."""

    @property
    def workers(self) -> int:
        """Number of workers now."""
        ...

    @property
    def monitor(self) -> Monitor:
        """Where the run is reported and can be watched."""
        ...

    def run(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[Done[R] | Lost[T], None, None]:
        """Yield one outcome per item, in the order in which they arrive.

        Items are taken as workers become free. An error that a task raises is raised here and ends the run; a task
        whose workers died is yielded as `Lost`, and the run continues.
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
    """Runs tasks one after the other in this process."""

    workers = 1

    def __init__(self) -> None:
        self.monitor = Monitor()

    def run(self, function: Callable[[T], R], items: Iterable[T]) -> Generator[Done[R] | Lost[T], None, None]:
        """Yield the results in the order of the items."""
        for item in items:
            yield Done(function(item), THIS_PROCESS)

    def on_each_worker(self, function: Callable[[], R]) -> dict[str, R | BaseException]:
        """Call `function` in this process; its error is raised."""
        return {THIS_PROCESS: function()}

    def worker_memory_bytes(self) -> int | None:
        """Return None: the machine is the only limit."""
        return None

    def close(self) -> None:
        """Do nothing: nothing was started."""


def completed(outcomes: Generator[Done[R] | Lost[T], None, None]) -> Iterator[Done[R]]:
    """Yield the results of `Executor.run`; raise PipelineError at the first task that was lost."""
    with closing(outcomes):
        for outcome in outcomes:
            if isinstance(outcome, Lost):
                raise PipelineError(
                    f"{shorten(str(outcome.item), 80)} killed {outcome.workers_lost} workers in a row, probably by "
                    "running out of memory; give the workers more memory or make store.chunks_per_shard smaller, then "
                    "run the same command again: finished shards are kept"
                )
            yield outcome
