"""Local clusters whose workers cannot live, and the workers of an interrupted run."""

import gc
import os
import re
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest

from pipeline.errors import PipelineError, UsageError
from pipeline.monitoring.events import EndEvent
from pipeline.runtime import cluster_classes, dask_errors, dask_session, memory_limit
from pipeline.runtime.dask_executor import DaskExecutor
from pipeline.runtime.executor import completed
from pipeline.runtime.profiles import ClusterProfile
from pipeline.settings import shown

LOCAL = {"threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0", "silence_logs": "CRITICAL"}


def local(**kwargs: Any) -> ClusterProfile:
    return ClusterProfile(kwargs={**LOCAL, **kwargs})


def refusal(profile: ClusterProfile) -> str:
    with pytest.raises(UsageError) as error:
        profile.start(1)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("limit", [2, 1024, "100MB", "2", 0.0001, "1 kiB", -1])
def test_memory_limit_below_an_idle_worker_is_refused(limit: object) -> None:
    message = refusal(local(memory_limit=limit))
    assert message.startswith(
        f"--cluster: kwargs.memory_limit = {shown(limit)}: a worker is ended when it uses 95% of its"
    )
    assert message.endswith("write for example 1GiB")
    assert ("a number without a unit counts bytes" in message) == (limit not in ("100MB", "1 kiB"))


def test_memory_limit_of_which_little_may_be_used_is_refused() -> None:
    with dask.config.set({"distributed.worker.memory.terminate": 0.1}):
        message = refusal(local(memory_limit="1GiB"))
    assert message.startswith("--cluster: kwargs.memory_limit = 1GiB: a worker is ended when it uses 10% of its limit")
    assert message.endswith("; make it larger, or Dask's setting distributed.worker.memory.terminate")


def test_memory_limit_that_is_no_size_is_refused() -> None:
    assert refusal(local(memory_limit="much")).startswith("--cluster: kwargs.memory_limit = much: Could not interpret")


@pytest.mark.parametrize(
    ("module", "name", "kwargs", "key"),
    [
        ("dask.distributed", "SSHCluster", {"worker_options": {"memory_limit": 2}}, "worker_options.memory_limit"),
        ("dask_jobqueue", "SGECluster", {"cores": 4, "processes": 4, "memory": "256MiB"}, "memory"),
        (
            "dask_kubernetes.operator", "KubeCluster", {"resources": {"limits": {"memory": "2Mi"}}},
            "resources.limits.memory",
        ),
    ],
)  # fmt: skip
def test_memory_limit_of_other_clusters_is_refused_alike(
    monkeypatch: pytest.MonkeyPatch, module: str, name: str, kwargs: dict[str, Any], key: str
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: name)
    profile = ClusterProfile.model_validate({"module": module, "class": name, "kwargs": kwargs})
    with pytest.raises(UsageError, match=f"^--cluster: kwargs.{key} = .* but an idle one takes"):
        profile.start(None)


@pytest.mark.parametrize("limit", [None, 0, "1GiB", 0.5, "auto"])
def test_other_memory_limits_are_accepted(limit: object) -> None:
    memory_limit.check_memory_limit(("memory_limit",), {"memory_limit": limit})


def test_number_of_workers_is_that_of_the_cores_which_this_process_may_use() -> None:
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert cluster_classes.class_named("dask.distributed", "LocalCluster").defaults(None)["n_workers"] == 1
    finally:
        os.sched_setaffinity(0, cores)


@pytest.mark.slow
def test_local_cluster_without_workers_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_classes, "START_LIMIT_S", 1.0)
    with DaskExecutor(local(n_workers=0), None) as executor, pytest.raises(PipelineError) as error:
        _ = executor.session
    assert "has had no worker for 1 s; see why none starts, or make worker_timeout_s in the profile" in str(
        error.value
    )


def own_process(_: int) -> int:
    return os.getpid()


@pytest.mark.slow
def test_reason_of_the_last_death_of_a_worker_is_reported() -> None:
    profile = local()
    # a cluster that closes the nanny of a worker as soon as the worker is away
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "1ms"}), DaskExecutor(profile, 1) as executor:
        cluster = executor.session.client.cluster
        assert profile.outlook(cluster).news == ""
        (pid,) = executor.on_each_worker(os.getpid).values()
        os.kill(pid, signal.SIGKILL)
        (done,) = completed(executor.run(own_process, [0]))
        assert done.result != pid, "the nanny started another process, which did the task"
        assert profile.outlook(cluster).news == "a worker process was killed by SIGKILL"


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="no IPv6 here")
def test_addresses_may_be_of_ipv6() -> None:
    with DaskExecutor(local(host="[::1]", dashboard_address=[["::1", 0]]), 1) as executor:
        assert re.fullmatch(r"http://\[::1\]:\d+/pipeline", str(executor.monitor.dashboard))
        assert len(executor.on_each_worker(os.getpid)) == 1


def hangs(running: Path) -> None:
    running.touch()
    time.sleep(10**6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")  # Dask leaves one if port 8787 is taken
def test_workers_of_an_interrupted_run_are_killed_and_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed, running, preload = tmp_path / "closed", tmp_path / "running", tmp_path / "preload.py"
    preload.write_text(f"from pathlib import Path\ndef dask_teardown(worker): Path({str(closed)!r}).touch()")
    with DaskExecutor(local(preload=str(preload), dashboard_address=None), 1) as executor:
        assert executor.monitor.dashboard is None
        (pid,) = executor.on_each_worker(os.getpid).values()
        executor.session.client.submit(partial(hangs, running))
        while not running.exists():
            time.sleep(0.02)
        monkeypatch.setattr(dask_session, "arrived", lambda: True)
    assert not psutil.pid_exists(pid)
    assert not closed.exists(), "the worker was asked to close"
    gc.collect()  # the socket is reported here, not in a later test


def test_client_that_has_given_its_scheduler_up_is_an_error_of_one_line() -> None:
    with DaskExecutor(local(n_workers=1), None) as executor:
        session = executor.session
        session.client.sync(session.client.rpc.close)  # as Dask does some time after the connection is lost
        executor.monitor.report(EndEvent())
        with pytest.raises(PipelineError) as error, dask_errors.scheduler_needed("tcp://127.0.0.1:1"):
            session.client.nthreads()
    assert str(error.value) == (
        "the scheduler at tcp://127.0.0.1:1 is gone; start it again and run the same command again: finished shards "
        "are kept"
    )


def test_other_errors_of_a_call_of_the_scheduler_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="another"), dask_errors.scheduler_needed("tcp://127.0.0.1:1"):
        raise RuntimeError("another")
