"""Queues that refuse jobs or keep them waiting: a fake sbatch, and otherwise dask-jobqueue and Dask as they are."""

import logging
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from pipeline.errors import PipelineError, UsageError
from pipeline.runtime import job_queue, workers
from pipeline.runtime.dask_executor import DaskExecutor
from pipeline.runtime.executor import completed
from pipeline.runtime.profiles import ClusterProfile
from tests.support.whole_system import run_until, write_corpus

pytestmark = pytest.mark.slow

REFUSES = "echo 'sbatch: error: Invalid account or account/partition combination specified' >&2; exit 1"
ACCEPTS = "echo Submitted batch job 1234"
RUNS_ONE = (
    'mkdir "{folder}/first" 2>/dev/null || {{ echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }}\n'
)
RUNS_ONE += 'cp "$1" "{folder}/job"; sh "{folder}/job" >/dev/null 2>&1 & echo Submitted batch job $!'


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes the command sbatch from the lines of a shell script."""

    def make(lines: str) -> None:
        for name, script in (("sbatch", lines), ("scancel", 'kill "$1" 2>/dev/null')):
            program = tmp_path / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")

    return make


def profile(folder: Path, **keys: object) -> ClusterProfile:
    kwargs = {
        "cores": 1, "processes": 1, "memory": "1GiB", "log_directory": str(folder / "logs"),
        "worker_extra_args": ["--no-dashboard", "--host", "127.0.0.1"],
        "scheduler_options": {"host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"},
    }  # fmt: skip
    return ClusterProfile.model_validate(
        {"module": "dask_jobqueue", "class": "SLURMCluster", "kwargs": kwargs, **keys}
    )


def refusal(profile: ClusterProfile, number: int | None) -> str:
    with DaskExecutor(profile, number) as executor, pytest.raises(PipelineError) as error:
        _ = executor.session
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("number", [None, 2])
def test_answer_of_a_queue_that_refuses_all_jobs_ends_the_command(
    queue: Callable[[str], None], tmp_path: Path, number: int | None
) -> None:
    queue(REFUSES)
    message = refusal(profile(tmp_path, adaptive={"maximum": 4}, worker_timeout_s=None), number)
    assert message.startswith("--cluster: the scheduler at tcp://127.0.0.1:")
    assert message.endswith(
        "can get no worker: sbatch refused a job: sbatch: error: Invalid account or account/partition combination "
        "specified; correct the profile and run the same command again: finished shards are "
        "kept"
    )


def test_missing_command_is_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="SLURMCluster submits jobs with sbatch, which is not on the PATH here; run"):
        profile(tmp_path).start(2)


def test_jobs_that_wait_are_named_with_their_logs_until_the_limit(
    queue: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queue(ACCEPTS)
    monkeypatch.setattr(workers, "WARN_EVERY_S", 0.0)
    message = refusal(profile(tmp_path, worker_timeout_s=2.0), 2)
    jobs = f"2 jobs submitted: 1234, 1234; logs in {tmp_path}/logs"
    assert f"has had no worker for 2 s: {jobs}; see why none starts, or make worker_timeout_s in the" in message
    assert any(f"has no worker ({jobs}); the run continues when one" in line for line in caplog.messages)


@pytest.mark.long
@pytest.mark.parametrize(("script", "line"), [(ACCEPTS, "has no worker ("), ("exec sleep 60", "has not answered for")])
def test_ctrl_c_ends_a_command_that_waits_for_jobs(
    queue: Callable[[str], None], tmp_path: Path, script: str, line: str
) -> None:
    queue(script)
    corpus, file = write_corpus(tmp_path / "corpus", speakers=1, recordings=1), tmp_path / "cluster.yaml"
    file.write_text(yaml.safe_dump({"mine": profile(tmp_path).model_dump(by_alias=True, exclude_unset=True)}))
    arguments = ("scan", "--corpus", corpus, "--out", tmp_path / "out", "--cluster-file", file, "--cluster", "mine")
    result = run_until(lambda log: line in log, signal.SIGINT, *arguments, "--workers", "2")
    assert result.returncode == 130, result.stderr
    assert result.stderr.splitlines()[-1].endswith("interrupted; the same command continues")
    assert "Traceback" not in result.stderr


def test_queue_that_does_not_answer_ends_the_command(
    queue: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queue("exec sleep 1000000")
    monkeypatch.setattr(job_queue, "WARN_AFTER_S", 0)
    monkeypatch.setattr(job_queue, "ANSWER_LIMIT_S", 1)
    message = refusal(profile(tmp_path, worker_timeout_s=None), 2)
    assert "can get no worker: sbatch has not answered within 1 s; correct the profile" in message
    assert "sbatch has not answered for 0 s; it is ended after 1 s" in caplog.messages


@pytest.mark.long
def test_refusal_of_a_further_job_is_a_warning(
    queue: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    queue(RUNS_ONE.format(folder=tmp_path))
    monkeypatch.setattr(workers, "LOOK_EVERY_S", 0.0)
    with caplog.at_level(logging.WARNING), DaskExecutor(profile(tmp_path), 2) as executor:
        assert [done.result for done in completed(executor.run(str, [5]))] == ["5"]
        executor.session.workers.look()
    assert "sbatch refused a job: sbatch: error: QOSMaxSubmitJobPerUserLimit; the run continues with 1 worker" in [
        line for line in caplog.messages if "refused" in line
    ]
