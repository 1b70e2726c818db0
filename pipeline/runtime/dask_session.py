"""A session with a Dask cluster: start it or connect to it, upload the code, wait for workers, and leave it."""

import asyncio
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import dask.config
from distributed import Client, Security
from distributed.comm.core import connect

from pipeline.errors import PipelineError, UsageError, first_cause, in_one_line
from pipeline.interrupts import arrived, shielded
from pipeline.runtime.code_upload import UploadToScheduler, UploadToWorkers, pack_code
from pipeline.runtime.dask_errors import scheduler_needed
from pipeline.runtime.dask_monitor import DaskMonitor
from pipeline.runtime.profiles import ClusterProfile
from pipeline.runtime.workers import Workers

CONNECT_TIMEOUT_S: Final = 5.0
CLOSE_LIMIT_S: Final = 5.0
"""How long an interrupted run waits for its cluster to stop."""

DASK_SETTINGS: dict[str, Any] = {
    # by default glibc returns every freed block at once, which turns large NumPy temporaries into page faults
    "distributed.nanny.pre-spawn-environ": {
        "MALLOC_TRIM_THRESHOLD_": str(2**28),
        "MALLOC_MMAP_THRESHOLD_": str(2**28),
        "MALLOC_ARENA_MAX": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    },
    # the profiler samples the stack of every task every 10 ms
    "distributed.worker.profile.enabled": False,
    # by default a task is given up after its fourth worker died; what is given up here is tried again in smaller parts
    "distributed.scheduler.allowed-failures": 1,
    # by default each process wakes up 50 times per second to check its event loop, and 10 times to check its memory
    "distributed.admin.tick.interval": "500ms",
    "distributed.worker.memory.monitor-interval": "500ms",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DaskSession:
    """An open connection to a cluster that has at least one worker."""

    client: Client
    scheduler: str
    """Address of the scheduler."""
    monitor: DaskMonitor
    workers: Workers


@contextmanager
def open_session(profile: ClusterProfile, workers_wanted: int | None) -> Iterator[DaskSession]:
    """Start the profile's cluster, with `workers_wanted` workers if given, or connect to the one that is running.

    At the end of the context the connection is closed, and a cluster that was started here is stopped. The loggers of
    Dask, Tornado and asyncio stay quiet from the first session on: what fails is raised as an exception.
    """
    with ExitStack() as stack:
        _set_log_levels(starting_or_stopping=True)
        stack.enter_context(dask.config.set({**DASK_SETTINGS, **profile.dask_settings}))
        with warnings.catch_warnings():
            # a second run on a machine finds the dashboard's port taken and gets another one
            warnings.filterwarnings("ignore", message="Port .* is already in use")
            cluster = _start(profile, workers_wanted)
        stack.callback(_stop, profile, cluster)
        client, scheduler = _connect(profile, cluster, stack)
        stack.callback(_set_log_levels, starting_or_stopping=True)
        _set_log_levels(starting_or_stopping=False)
        with scheduler_needed(scheduler):
            if profile.ship_code:
                archive = pack_code()
                client.register_plugin(UploadToScheduler(archive))
                client.register_plugin(UploadToWorkers(archive))
            monitor = DaskMonitor(client, scheduler)
        workers = Workers(client, scheduler, partial(profile.outlook, cluster))
        workers.wait_for_one()
        yield DaskSession(client, scheduler, monitor, workers)


def _start(profile: ClusterProfile, workers: int | None) -> Any | None:
    """Return the cluster that was started; None for one that is running already."""
    if not profile.runs_already:
        security = security_of(profile.security)
        arguments = {"security": security} if security else {}
        profile.load_class()  # in the main thread, see there
        return shielded(lambda: profile.start(workers, **arguments), lambda cluster: _stop(profile, cluster))
    if workers is not None:
        raise UsageError(f"--workers {workers}: the cluster runs already, with the workers that it has")
    return None


def _connect(profile: ClusterProfile, cluster: Any | None, stack: ExitStack) -> tuple[Client, str]:
    """Return a client, which `stack` closes, and the address of its scheduler."""
    security = security_of(profile.security)
    where: Any = cluster
    if cluster is None:
        where = profile.scheduler_address()
        check_reachable(where, security)
    with scheduler_needed(getattr(where, "scheduler_address", where)):
        try:
            client = stack.enter_context(Client(where, security=security, set_as_default=False, **profile.client))
        except (TypeError, ValueError) as error:
            raise UsageError(f"--cluster: client: {in_one_line(error)}; correct the profile") from error
        return client, client.scheduler_info(n_workers=0)["address"]


def _stop(profile: ClusterProfile, cluster: Any | None) -> None:
    """Stop a cluster that was started here; if a signal ended the run, do not wait for the tasks of its workers."""
    if cluster is None:
        return
    if not arrived():
        cluster.close()
        return
    profile.kill(cluster)
    # a job that is being submitted holds the cluster up; distributed 2026.8.0 raises UnboundLocalError if it is
    # cancelled
    with suppress(TimeoutError, UnboundLocalError):
        cluster.close(timeout=CLOSE_LIMIT_S)


def _set_log_levels(*, starting_or_stopping: bool) -> None:
    """Show errors of Dask while tasks run, except repetitions of an error that is raised here as well."""
    logging.getLogger("distributed").setLevel(logging.CRITICAL if starting_or_stopping else logging.ERROR)
    for name in ("distributed.client", "tornado.application"):  # one line per result that a lost scheduler held
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if starting_or_stopping:
        logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def security_of(settings: Mapping[str, Any]) -> Security | None:
    """Return a profile's security, None for no settings; raises UsageError for settings that cannot be used."""
    if not settings:
        return None
    for name, value in settings.items():
        # a certificate may also be given as its text
        if name.endswith(("_file", "_cert", "_key")) and "\n" not in str(value) and not Path(value).is_file():
            raise UsageError(f"--cluster: security: {name}: {value}: there is no such file")
    try:
        return Security(**settings)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--cluster: security: {error}; the names are those of distributed.Security") from None


def check_reachable(address: str, security: Security | None) -> None:
    """Raise PipelineError where no scheduler answers within CONNECT_TIMEOUT_S.

    A Client would retry for longer and log a traceback.
    """

    async def open_and_close() -> None:
        arguments = (security or Security()).get_connection_args("client")
        comm = await connect(address, timeout=CONNECT_TIMEOUT_S, **arguments)
        await comm.close()

    try:
        asyncio.run(open_and_close())
    except (OSError, ValueError, TypeError, RuntimeError) as error:
        reason = in_one_line(first_cause(error))
        raise PipelineError(
            f"--cluster: no scheduler can be reached at {address}: {reason}; is it started, and are its address and "
            "the profile's security right?"
        ) from error
