"""What single classes of clusters need besides their arguments, and what they report of missing workers."""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from subprocess import DEVNULL
from typing import Any, Final

from pipeline.errors import UsageError
from pipeline.runtime import job_queue
from pipeline.runtime.outlook import START_LIMIT_S, Outlook

CLOSE_TIMEOUT_S: Final = 10


@dataclass(frozen=True)
class ClusterClass:
    """What a class of clusters needs besides the arguments of its profile."""

    dask_settings: Mapping[str, Any] = field(default_factory=dict)
    """Dask's settings while the cluster runs."""
    check: Callable[[Mapping[str, Any]], None] = lambda _: None
    """Called with the arguments; raises UsageError for those that the class takes and this project cannot use."""
    defaults: Callable[[Any], dict[str, Any]] = lambda _: {}
    """Called with the class; returns arguments for those that the profile does not give."""
    memory_key: tuple[str, ...] = ()
    """Where the arguments have the memory limit of a worker, or of a job with several."""
    after_start: Callable[[Any], None] = lambda _: None
    """Called with the started cluster."""
    after_failure: Callable[[Any], None] = lambda _: None
    """Called with the class after a failed start."""
    outlook: Callable[[Any], Outlook] = lambda _: Outlook()
    """Called with a cluster that has no worker."""
    kill: Callable[[Any], None] = lambda _: None
    """Called with a cluster of an interrupted run: kills its worker processes, if they are on this machine."""


def class_named(module: str, name: str) -> ClusterClass:
    """Return what the class `name` of `module` needs."""
    package = module.partition(".")[0]
    return CLASSES.get(package) or CLASSES.get(name) or ClusterClass()


def _refuse_threads(arguments: Mapping[str, Any]) -> None:
    if arguments.get("processes") is False:
        raise UsageError(
            "--cluster: kwargs.processes = false: workers must be processes, so that one that crashes is replaced; "
            "remove the key, or use --executor serial"
        )


def _local_defaults(_: Any) -> dict[str, Any]:
    """Return one worker per core, and nannies that survive a worker's death in its first seconds."""
    from dask.system import cpu_count  # noqa: PLC0415 Dask takes a second to load

    from pipeline.runtime.nanny import RestartingNanny  # noqa: PLC0415

    RestartingNanny.last_death = ""
    return {"n_workers": cpu_count(), "worker_class": RestartingNanny}


def _local_outlook(_: Any) -> Outlook:
    from pipeline.runtime.nanny import RestartingNanny  # noqa: PLC0415

    return Outlook(news=RestartingNanny.last_death, limit_s=START_LIMIT_S)


def _kill_local_workers(cluster: Any) -> None:
    """Kill the worker processes of a LocalCluster: closed in order, one waits up to 4 s for its task.

    Written against distributed 2026.8.0: a nanny in the state "closing_gracefully" starts no other process.
    """

    async def kill() -> None:
        for nanny in list(cluster.workers.values()):
            nanny.close_gracefully()
            if nanny.process is not None and nanny.process.process is not None:
                await nanny.process.process.kill()

    cluster.sync(kill)


def _discard_output(cluster: Any) -> None:
    """Discard the output of SSHCluster's remote processes: it is not read after the start, and a few MB block them.

    Written against distributed 2026.8.0 (`Process.proc`, an asyncssh process) and asyncssh 2.24.
    """

    async def redirect() -> None:
        for process in (cluster.scheduler, *cluster.workers.values()):
            await process.proc.redirect(stdout=DEVNULL, stderr=DEVNULL)

    cluster.sync(redirect)


def _delete_half_started(start: Any) -> None:
    """Delete what a failed start of KubeCluster left. Otherwise Python deletes it at exit, with a traceback.

    Written against dask-kubernetes 2026.3 (`KubeCluster._instances`, `shutdown_on_close`).
    """
    logging.getLogger("dask_kubernetes").setLevel(logging.ERROR)  # it warns about resources that were never made
    for cluster in list(getattr(start, "_instances", ())):
        with suppress(Exception):  # there may be nothing to delete, or no API server
            cluster.close(timeout=CLOSE_TIMEOUT_S)
        cluster.shutdown_on_close = False


def _pods(cluster: Any) -> Outlook:
    return Outlook(news=f"kubectl get pods -l dask.org/cluster-name={cluster.name} shows its pods")


CLASSES: Final[Mapping[str, ClusterClass]] = {
    "LocalCluster": ClusterClass(
        dask_settings={
            # so long after a worker's death, a cluster closes its nanny if the worker is away: as another one starts,
            # perhaps, since nannies replace workers themselves
            "distributed.deploy.lost-worker-timeout": "1000 days",
        },
        check=_refuse_threads, defaults=_local_defaults, memory_key=("memory_limit",), outlook=_local_outlook,
        kill=_kill_local_workers,
    ),
    "SSHCluster": ClusterClass(
        memory_key=("worker_options", "memory_limit"), after_start=_discard_output,
        outlook=lambda _: Outlook(limit_s=START_LIMIT_S),
    ),
    "KubeCluster": ClusterClass(
        memory_key=("resources", "limits", "memory"), after_failure=_delete_half_started, outlook=_pods
    ),
    "dask_jobqueue": ClusterClass(
        defaults=job_queue.noting_refusals, memory_key=("memory",), outlook=job_queue.outlook
    ),
}  # fmt: skip
"""By the name of the class or of its package, which are loaded with the cluster, not with this module."""
