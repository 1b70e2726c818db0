"""Running tasks on a Dask cluster, in a window that follows the workers."""

import logging
import math
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property
from itertools import islice
from textwrap import shorten
from typing import Any, Self, TypeVar

import dask.config
from dask.typing import Key
from dask.utils import parse_bytes
from distributed import Client, KilledWorker, as_completed, get_worker, performance_report
from distributed.comm.core import CommClosedError
from upath import UPath

from pipeline.errors import PipelineError, UsageError, first_cause, in_one_line
from pipeline.interrupts import held_back
from pipeline.monitoring.dashboard import TOPIC, Dashboard, lost_workers_and_retries, series_csv
from pipeline.runtime.code_upload import REMEDY, UploadToScheduler, UploadToWorkers, identity, packed
from pipeline.runtime.dask_session import check_reachable, security_of
from pipeline.runtime.executor import Done
from pipeline.runtime.profiles import ClusterProfile

T = TypeVar("T")
R = TypeVar("R")

TASKS_PER_THREAD = 3
"""Tasks at a worker's thread or on the way to it: enough that none waits, few enough that a plan of any length costs
the scheduler no memory."""

TELL_AGAIN_S = 10.0
LOOK_EVERY_S = 2.0
POLL_S = 0.02
NO_WORKER = "the scheduler at %s has no worker; waiting goes on until one comes, Ctrl-C ends it"

DASK_SETTINGS: dict[str, Any] = {
    # Dask has glibc return every freed block at once, which turns large NumPy temporaries into page faults
    "distributed.nanny.pre-spawn-environ": {
        "MALLOC_TRIM_THRESHOLD_": str(2**28),
        "MALLOC_MMAP_THRESHOLD_": str(2**28),
        "MALLOC_ARENA_MAX": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    },
    # a stack sample every 10 ms of every task is for finding slow code, not for running it
    "distributed.worker.profile.enabled": False,
    # each process wakes up 50 times a second to see that its event loop lives, and 10 times to see its memory
    "distributed.admin.tick.interval": "500ms",
    "distributed.worker.memory.monitor-interval": "500ms",
}


log = logging.getLogger(__name__)


class DaskExecutor:
    """Runs tasks on the Dask cluster of a profile, which is there with the first task and left with the context."""

    def __init__(self, profile: ClusterProfile, workers: int | None) -> None:
        self._profile, self._wanted = profile, workers
        self._stack = ExitStack()
        self._address, self._has_page = "", False
        self._looked_s, self._told_s, self._threads, self._known = -math.inf, math.inf, 0, frozenset[str]()

    @cached_property
    def _client(self) -> Client:
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong comes as an exception
        self._stack.enter_context(dask.config.set(DASK_SETTINGS))
        with warnings.catch_warnings(), held_back():
            # a second run on a machine finds the dashboard's port taken and gets another one
            warnings.filterwarnings("ignore", message="Port .* is already in use")
            client: Client = self._stack.enter_context(self._connect())
        logging.getLogger("distributed").setLevel(logging.ERROR)
        for name in ("distributed.client", "tornado.application"):  # tell of each result that a lost scheduler had
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._address = client.scheduler_info(n_workers=0)["address"]
        if self._profile.ship_code:
            parcel = packed()
            client.register_plugin(UploadToScheduler(parcel))
            client.register_plugin(UploadToWorkers(parcel))
        self._has_page = self._add_page(client)
        self._wait_for_a_worker(client)
        return client

    def _connect(self) -> Client:
        """Start the profile's cluster, or find the one that runs already."""
        profile = self._profile
        security = security_of(profile.security)
        if profile.runs_already:
            if self._wanted is not None:
                raise UsageError(f"--workers {self._wanted}: the cluster runs already, with the workers that it has")
            where: Any = profile.scheduler_address()
            check_reachable(where, security)
        else:
            arguments = {"security": security} if security else {}
            where = self._stack.enter_context(profile.start(self._wanted, **arguments))
        client: Client = Client(where, security=security, set_as_default=False, **profile.client)
        return client

    def _wait_for_a_worker(self, client: Client) -> None:
        while not client.nthreads():
            try:
                client.wait_for_workers(1, timeout=TELL_AGAIN_S)
            except TimeoutError:
                log.warning(NO_WORKER, self._address)

    def _add_page(self, client: Client) -> bool:
        """Add our page to the scheduler's server; return whether it could be: the scheduler may lack this package."""
        try:
            client.register_plugin(Dashboard())
        except ImportError as error:
            log.warning(
                "the scheduler at %s has no page /pipeline: %s; install the project there", self._address, error
            )
            return False
        return True

    @property
    def dashboard(self) -> str | None:
        """Address of our page on Dask's dashboard, or of Dask's own where ours is not to be had."""
        link = str(self._client.dashboard_link)
        return link.removesuffix("/status") + "/pipeline" if self._has_page else link

    def tell(self, *events: Mapping[str, Any]) -> None:
        """Pass the events on to the page; a scheduler that is gone is told of elsewhere."""
        if self._has_page:
            with suppress(OSError):
                self._client.log_event(TOPIC, events)

    def lost_workers_and_retries(self) -> tuple[int, int] | None:
        """Ask the scheduler, which alone knows."""
        found: tuple[int, int] | None = (
            self._client.run_on_scheduler(lost_workers_and_retries) if self._has_page else None
        )
        return found

    def series_csv(self) -> bytes | None:
        """Ask the scheduler, which alone knows the workers' memory."""
        found: bytes | None = self._client.run_on_scheduler(series_csv) if self._has_page else None
        return found

    @contextmanager
    def performance_report(self, page: UPath) -> Iterator[None]:
        """Write Dask's performance report, which needs nothing from outside to be looked at."""
        client = self._client
        report = performance_report(str(page), mode="inline", storage_options=dict(page.storage_options))
        with client.as_current():
            report.__enter__()
            yield
            page.parent.mkdir(parents=True, exist_ok=True)
            report.__exit__(None, None, None)

    @property
    def workers(self) -> int:
        """How many workers there are now."""
        self._look()
        return len(self._known)

    def worker_memory_bytes(self) -> int | None:
        """Return the memory limit of the smallest worker, if there is one."""
        workers = self._client.scheduler_info(n_workers=-1)["workers"].values()
        limits = [parse_bytes(worker["memory_limit"]) for worker in workers if worker["memory_limit"]]
        return min(limits, default=None)

    def on_each_worker(self, function: Callable[[], R]) -> dict[str, R | BaseException]:
        """Call `function` once on each worker there is; return what it gave or raised, by the worker's address."""
        outcomes: dict[str, R | BaseException] = self._client.run(function, on_error="return")
        there = self._client.nthreads()
        # one that left while it was asked needs no answer
        return {worker: outcome for worker, outcome in outcomes.items() if worker in there}

    def run(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
        """Yield the results as they come, with a bounded number of tasks submitted at any time."""
        return (done.result for done in self.run_attributed(function, items))

    def run_attributed(self, function: Callable[[T], R], items: Iterable[T]) -> Iterator[Done[R]]:
        """As `run`, with the worker that each result comes from."""
        client, rest = self._client, iter(items)
        names: dict[Key, str] = {}
        kind = getattr(function, "func", function).__name__  # what Dask's pages call the tasks
        pending = as_completed(loop=client.loop, with_results=True)

        def fill() -> None:
            for item in islice(rest, max(0, self._window() - len(names))):
                future = client.submit(_attributed, function, item, identity(), key=f"{kind}-{uuid.uuid4().hex}")
                names[future.key] = shorten(str(item), 80)
                pending.add(future)

        try:
            fill()
            for future, done in self._arrivals(pending):
                if isinstance(done, CancelledError):
                    raise done
                del names[future.key]
                fill()
                yield done
        except KilledWorker as error:
            raise PipelineError(
                f"{names.get(error.task, error.task)} killed {error.allowed_failures + 1} workers one after the "
                "other, most likely for want of memory; give workers more memory or make store.chunks_per_shard "
                "smaller, then run the same command again: finished shards are kept"
            ) from error
        except (CancelledError, CommClosedError) as error:
            raise PipelineError(
                f"the scheduler at {self._address} is gone; start it again and run the same command again: "
                "finished shards are kept"
            ) from error
        except RuntimeError as error:
            if "deserialization of the task graph" not in str(error):
                raise
            reason = in_one_line(first_cause(error))
            raise PipelineError(f"the scheduler at {self._address} cannot read tasks: {reason}; {REMEDY}") from error
        finally:
            pending.clear()

    def _arrivals(self, pending: Any) -> Iterator[Any]:
        """Yield what comes, and look meanwhile whether workers are there from which it can come."""
        while pending.count():
            if pending.has_ready():
                yield next(pending)
            else:
                self._look()
                time.sleep(POLL_S)

    def _window(self) -> int:
        """How many tasks may be submitted: it follows the workers that come and go."""
        self._look()
        return TASKS_PER_THREAD * max(1, self._threads)

    def _look(self) -> None:
        """See which workers there are, now and then."""
        now_s = time.monotonic()
        if now_s - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now_s
        threads: dict[str, int] = self._client.nthreads()
        self._known, self._threads = frozenset(threads), sum(threads.values())
        if threads:
            self._told_s = now_s
        elif now_s - self._told_s > TELL_AGAIN_S:
            self._told_s = now_s
            log.warning(NO_WORKER, self._address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            # what Dask and Tornado say of connections that are cut under running tasks is no news
            for name in ("distributed", "distributed.client", "tornado.application", "asyncio"):
                logging.getLogger(name).setLevel(logging.CRITICAL)
        self.close()

    def close(self) -> None:
        """Leave the cluster, and stop it if it was started here."""
        self._stack.close()
        self.__dict__.pop("_client", None)
        self._looked_s = -math.inf


def _attributed(function: Callable[[T], R], item: T, driver: str) -> Done[R]:
    """Run a task; a worker that came after the others were checked may be of another kind than the driver."""
    worker = get_worker().address
    if identity() != driver:
        raise PipelineError(
            f"worker {worker} came with other code of this project or other libraries than the driver's; install the "
            "same there and run the same command again: finished shards are kept"
        )
    return Done(function(item), worker)
