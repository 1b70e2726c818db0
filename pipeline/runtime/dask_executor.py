"""Running tasks on a Dask cluster, a bounded number of them at a time."""

import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack
from itertools import islice
from typing import Any, Final, Self, TypeVar

from dask.typing import Key
from dask.utils import parse_bytes
from distributed import Future, KilledWorker, as_completed, get_worker
from distributed.comm.core import CommClosedError

from pipeline.errors import PipelineError, first_cause, in_one_line
from pipeline.runtime.code_upload import REMEDY, identity
from pipeline.runtime.dask_errors import scheduler_lost, scheduler_needed
from pipeline.runtime.dask_monitor import DaskMonitor
from pipeline.runtime.dask_session import DaskSession, open_session
from pipeline.runtime.executor import Done, Lost
from pipeline.runtime.overdue import Watch
from pipeline.runtime.profiles import ClusterProfile
from pipeline.runtime.scheduler_queries import ran_out_of_memory

T = TypeVar("T")
R = TypeVar("R")

TASKS_PER_THREAD: Final = 3
"""Tasks submitted per thread of the workers: enough that no thread waits for its next task, few enough that the
scheduler's memory does not depend on the length of the plan."""

POLL_S: Final = 0.02


class DaskExecutor:
    """Runs tasks on the cluster of a profile. The session is opened by the first use and closed with the context."""

    def __init__(self, profile: ClusterProfile, workers: int | None) -> None:
        self._profile, self._workers_wanted = profile, workers
        self._session: DaskSession | None = None
        self._stack = ExitStack()

    @property
    def session(self) -> DaskSession:
        """The session with the cluster, opened if it is not open yet."""
        if self._session is None:
            self._session = self._stack.enter_context(open_session(self._profile, self._workers_wanted))
        return self._session

    @property
    def monitor(self) -> DaskMonitor:
        """The page on the scheduler's dashboard, and what the scheduler counted."""
        return self.session.monitor

    @property
    def workers(self) -> int:
        """Number of workers at the last look, which is at most two seconds old."""
        self.session.workers.look()
        return self.session.workers.count

    @property
    def threads(self) -> int:
        """Number of threads of all workers at the last look, which is at most two seconds old."""
        self.session.workers.look()
        return self.session.workers.threads

    def worker_memory_bytes(self) -> int | None:
        """Return the memory limit of the smallest worker, None where workers have no limit."""
        with scheduler_needed(self.session.scheduler):
            workers = self.session.client.scheduler_info(n_workers=-1)["workers"].values()
        limits = [parse_bytes(worker["memory_limit"]) for worker in workers if worker["memory_limit"]]
        return min(limits, default=None)

    def on_each_worker(self, function: Callable[[], R]) -> dict[str, R | BaseException]:
        """Call `function` once on each worker; return its result or its error by the worker's address."""
        client = self.session.client
        with scheduler_needed(self.session.scheduler):
            outcomes: dict[str, R | BaseException] = client.run(function, on_error="return")
            present = client.nthreads()
        # a worker that left during the call needs no answer
        return {worker: outcome for worker, outcome in outcomes.items() if worker in present}

    def run(
        self, function: Callable[[T], R], items: Iterable[T], limit_s: Callable[[T], float] | None = None
    ) -> Generator[Done[R] | Lost[T], None, None]:
        """Yield one outcome per item as it arrives, with a bounded number of tasks submitted at any time."""
        session, rest = self.session, iter(items)
        client = session.client
        submitted: dict[Key, T] = {}
        name = getattr(function, "func", function).__name__  # Dask's pages show it
        pending = as_completed(loop=client.loop, with_results=True, raise_errors=False)
        watch = Watch(client, session.scheduler)

        def fill() -> None:
            for item in islice(rest, max(0, self._window() - len(submitted))):
                future = client.submit(_run_task, function, item, identity(), key=f"{name}-{uuid.uuid4().hex}")
                submitted[future.key] = item
                if limit_s is not None:
                    watch.add(future, limit_s(item))
                pending.add(future)
            watch.look()

        try:
            fill()
            for future, result in _arrivals(pending, fill):
                item, overdue = submitted.pop(future.key), watch.remove(future.key)
                outcome = self._outcome(future, result, item, overdue=overdue)
                fill()
                yield outcome
        finally:
            pending.clear()

    def _outcome(self, future: Future[Any], result: Any, item: T, *, overdue: bool) -> Done[Any] | Lost[T]:
        """Return the outcome of a task; raise the error that it raised, or that of a lost scheduler."""
        scheduler = self.session.scheduler
        if isinstance(result, CancelledError):
            if overdue:
                return Lost(item, "timeout", 1)
            raise scheduler_lost(scheduler) from result
        if future.status != "error":
            done: Done[Any] = result
            return done
        _, error, traceback = result
        if isinstance(error, KilledWorker):
            with scheduler_needed(scheduler):
                full = self.session.client.run_on_scheduler(ran_out_of_memory, key=future.key)
            return Lost(item, "memory" if full else "crash", error.allowed_failures + 1)
        if isinstance(error, CommClosedError):
            raise scheduler_lost(scheduler) from error
        if isinstance(error, RuntimeError) and "deserialization of the task graph" in str(error):
            reason = in_one_line(first_cause(error))
            raise PipelineError(f"the scheduler at {scheduler} cannot read tasks: {reason}; {REMEDY}") from error
        raise error.with_traceback(traceback)

    def _window(self) -> int:
        """Return how many tasks may be submitted: it follows the number of workers."""
        return TASKS_PER_THREAD * max(1, self.threads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster, and stop it if it was started here. A later use opens a new session."""
        self._session = None
        self._stack.close()


def _arrivals(pending: Any, fill: Callable[[], None]) -> Iterator[Any]:
    """Yield finished futures with their results; meanwhile `fill` gives tasks to workers that connect."""
    while pending.count():
        if pending.has_ready():
            yield next(pending)
        else:
            fill()
            time.sleep(POLL_S)


def _run_task(function: Callable[[T], R], item: T, driver: str) -> Done[R]:
    """Run a task, unless this worker connected after the checks with other code or libraries than the driver's."""
    worker = get_worker().address
    if identity() != driver:
        raise PipelineError(
            f"worker {worker} connected with other code of this project or other libraries than the driver's; install "
            "the same versions there and run the same command again: finished shards are kept"
        )
    return Done(function(item), worker)
