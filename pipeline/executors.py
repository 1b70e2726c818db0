"""Where tasks run: in this process, or on a Dask cluster. The plan does not know, and the bytes do not change."""

import logging
import os
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property
from itertools import islice
from multiprocessing import resource_tracker
from textwrap import shorten
from typing import Any, Protocol, Self, TypeVar

import dask.config
from dask.typing import Key
from dask.utils import parse_bytes
from distributed import Client, Future, KilledWorker, as_completed

from pipeline.cluster import ClusterProfile
from pipeline.errors import PipelineError

T = TypeVar("T")
R = TypeVar("R")

TASKS_PER_WORKER = 3
"""Tasks at a worker or on the way to it: enough that none waits, few enough that a plan of any length costs the
scheduler no memory."""

DASK_SETTINGS: dict[str, Any] = {
    # Dask has glibc return every freed block at once, which turns large NumPy temporaries into page faults
    "distributed.nanny.pre-spawn-environ": {
        "MALLOC_TRIM_THRESHOLD_": str(2**28),
        "MALLOC_MMAP_THRESHOLD_": str(2**28),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    },
    # a stack sample every 10 ms of every task is for finding slow code, not for running it
    "distributed.worker.profile.enabled": False,
}


class Executor(Protocol):
    """Runs a function over items; use it as a context manager."""

    workers: int

    def run(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the results in the order in which they come; the first error of a task is raised."""
        ...

    @property
    def dashboard(self) -> str | None:
        """Address of the page that shows the work, if there is one."""
        ...

    def worker_memory_bytes(self) -> int | None:
        """Return the memory limit of the smallest worker, if there is one."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None: ...

    def close(self) -> None:
        """Stop what was started; a later `run` starts it again."""
        ...


class SerialExecutor:
    """Runs tasks one after the other in this process."""

    workers = 1
    dashboard = None

    def run(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the results in the order of the items."""
        yield from map(function, items)

    def worker_memory_bytes(self) -> int | None:
        """Return None: there is no limit but the machine's."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Nothing was started."""

    def close(self) -> None:
        """Nothing was started."""


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Keep Ctrl-C, which a terminal sends to every process of a command, for the driver alone.

    Processes inherit the mask of the thread that starts them, so workers that start here never see it, and neither
    do those that replace them. The driver has it when the context ends: a cluster of which half is started cannot be
    closed in peace.
    """
    resource_tracker.ensure_running()  # started later, it would lift the mask
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class DaskExecutor:
    """Runs tasks on a Dask cluster, which starts with the first task and ends with the context."""

    def __init__(self, profile: ClusterProfile, workers: int | None) -> None:
        self._profile = profile
        self.workers = workers or os.cpu_count() or 1
        self._stack = ExitStack()

    @cached_property
    def _client(self) -> Client:
        logging.getLogger("distributed").setLevel(logging.ERROR)
        self._stack.enter_context(dask.config.set(DASK_SETTINGS))
        with warnings.catch_warnings(), _interrupts_held_back():
            # a second run on a machine finds the dashboard's port taken and gets another one
            warnings.filterwarnings("ignore", message="Port .* is already in use")
            cluster = self._stack.enter_context(self._profile.start(self.workers))
            client: Client = self._stack.enter_context(Client(cluster))
        return client

    @property
    def dashboard(self) -> str | None:
        """Address of Dask's dashboard."""
        return str(self._client.dashboard_link)

    def worker_memory_bytes(self) -> int | None:
        """Return the memory limit of the smallest worker, if there is one."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        limits = [parse_bytes(worker["memory_limit"]) for worker in workers if worker["memory_limit"]]
        return min(limits, default=None)

    def run(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the results as they come, with a bounded number of tasks submitted at any time."""
        client, rest = self._client, iter(items)
        names: dict[Key, str] = {}

        def submit(item: T) -> Future[R]:
            future: Future[R] = client.submit(function, item, pure=False)
            names[future.key] = shorten(str(item), 80)
            return future

        pending = as_completed(map(submit, islice(rest, self.workers * TASKS_PER_WORKER)), with_results=True)
        try:
            for future, result in pending:
                del names[future.key]
                for item in islice(rest, 1):
                    pending.add(submit(item))
                yield result
        except KilledWorker as error:
            raise PipelineError(
                f"{names.get(error.task, error.task)} killed {error.allowed_failures + 1} workers one after the "
                "other, most likely for want of memory; give workers more memory or make store.chunks_per_shard "
                "smaller, then run the same command again: finished shards are kept"
            ) from error
        finally:
            pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            # what Dask and Tornado say of connections that are cut under running tasks is no news
            for name in ("distributed", "tornado", "asyncio"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
        self.close()

    def close(self) -> None:
        """Stop the cluster if it was started."""
        self._stack.close()
        self.__dict__.pop("_client", None)
