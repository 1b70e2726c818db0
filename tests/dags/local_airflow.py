"""Helpers of the DAG tests: a local Airflow, the pipeline's command line and small corpora."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import tenacity

ROOT = Path(__file__).resolve().parent.parent.parent
PYTHON = os.environ.get("PIPELINE_PYTHON", str(ROOT / ".venv" / "bin" / "python"))
CLEAN = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
STAGES = ["scan", "extract", "verify", "train", "evaluate", "promote", "report"]
FINISHED = ("success", "failed")
DEADLINE_S = 1200  # only ends waits that hang; on a loaded machine a run takes several minutes
# 12 minutes of audio in 113 shards: extraction is long enough to be interrupted, and the model beats chance
SMALL = """
demo: {speakers_per_language: 12, utterances_per_speaker: 5, utterance_s: 4.0}
store: {sequences_per_chunk: 32, chunks_per_shard: 1}
models:
  ann: null
  lstm: {units: 40, max_epochs: 10, patience: 10, batch_size: 50, learning_rate: 0.003}
promotion: {confidence: 0.0}
"""
STRICT = SMALL.replace("confidence: 0.0", "min_gain: 0.99")
# Airflow notices a killed worker after this timeout. Workers send a heartbeat every 5 s, on a loaded machine later.
QUICK = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "40",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
}


def environment(home: Path, **variables: object) -> dict[str, str]:
    """Return the environment of an Airflow in `home`; `variables` are the Airflow Variables language_id_NAME."""
    values = {"python": PYTHON, **variables}
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        **{f"AIRFLOW_VAR_LANGUAGE_ID_{name.upper()}": str(value) for name, value in values.items()},
    }


# SQLite rejects a write in a transaction that has read older data, and one that waits for another write for 5 s.
# Airflow rolls it back, so a retry is safe.
UNTIL_DEADLINE = tenacity.stop_after_delay(DEADLINE_S)


@tenacity.retry(
    retry=tenacity.retry_if_exception_message(match="(?s).*database is locked"), stop=UNTIL_DEADLINE, reraise=True
)
def airflow(home: Path, *arguments: str) -> None:
    """Run an Airflow command and assert that it succeeds."""
    command = [sys.executable, "-m", "airflow", *arguments]
    result = subprocess.run(
        command, env=CLEAN | environment(home), capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def load_dags() -> Any:
    """Return the DAGs of `dags/` as a `BundleDagBag`."""
    from airflow.dag_processing.dagbag import BundleDagBag  # not before AIRFLOW_HOME is set

    return BundleDagBag(dag_folder=ROOT / "dags", bundle_path=ROOT / "dags", bundle_name="dags-folder")


def pipeline(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the pipeline's command line; its log is in `stderr`."""
    command = [PYTHON, "-m", "pipeline.run", *map(str, arguments)]
    return subprocess.run(command, env=CLEAN, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def make_corpus(folder: Path, config: Path) -> Path:
    """Synthesise a demo corpus below `folder` and return its path."""
    made = pipeline("synthesise", "--out", folder, "--config", config, "--executor", "serial")
    assert made.returncode == 0, made.stderr
    return folder / "corpus"


def add_recordings(corpus: Path, speaker: str) -> None:
    """Add a speaker to each language, with copies of the first speaker's recordings."""
    for language in sorted(corpus.iterdir()):
        shutil.copytree(language / "speaker_00", language / speaker)


def store_bytes(out: Path) -> dict[str, bytes]:
    """Return the contents of all files of the store and its shard records, by relative path."""
    folders = (out / "features.zarr", out / "shards")
    return {str(p.relative_to(out)): p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file()}


def stage_processes(out: Path) -> list[psutil.Process]:
    """Return the processes that run a stage on `out`, without those that wait for the lock."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[1:3] == ["-m", "pipeline.run"] and str(out) in words:
            found.append(process)
    return found


def processes_of(home: Path) -> list[psutil.Process]:
    """Return all processes of the Airflow in `home`.

    They are recognised by their environment, or by an open file in `home`, because Airflow's workers overwrite their
    environment with their process title.
    """
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            in_environment = process.environ().get("AIRFLOW_HOME") == str(home)
            if in_environment or any(Path(file.path).is_relative_to(home) for file in process.open_files()):
                found.append(process)
    return found


@dataclass
class LocalAirflow:
    """The Airflow that `make dags` starts, and its REST API."""

    process: subprocess.Popen[str]
    url: str
    home: Path

    @tenacity.retry(
        retry=tenacity.retry_if_result(lambda response: response.is_server_error),
        stop=UNTIL_DEADLINE,
        retry_error_callback=lambda state: state.outcome and state.outcome.result(),
    )
    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """Return the answer of the REST API; a locked database is an internal error of the server."""
        return httpx.request(method, f"{self.url}/api/v2/{path}", timeout=DEADLINE_S, **arguments)

    def get(self, path: str, **query: str) -> Any:
        """Return the JSON answer of the REST API."""
        return self.request("GET", path, params=query).raise_for_status().json()

    def trigger(self, dag: str, **conf: object) -> httpx.Response:
        """Start a manual run with the parameters `conf`."""
        return self.request("POST", f"dags/{dag}/dagRuns", json={"logical_date": None, "conf": conf})

    def runs(self, dag: str) -> list[dict[str, Any]]:
        """Return the runs in the order of their start."""
        found: list[dict[str, Any]] = self.get(f"dags/{dag}/dagRuns", order_by="start_date", limit="100")["dag_runs"]
        return found

    def tasks(self, dag: str, run: str) -> dict[str, dict[str, Any]]:
        """Return the task instances of a run by task name."""
        found = self.get(f"dags/{dag}/dagRuns/{run}/taskInstances")["task_instances"]
        return {task["task_id"]: task for task in found}

    def task_states(self, dag: str, run: str) -> dict[str, str]:
        """Return the state of each task of a run by task name."""
        return {name: task["state"] for name, task in self.tasks(dag, run).items()}

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        """Poll `condition` until it returns a true value, and return that value."""
        deadline_s = time.monotonic() + DEADLINE_S
        while not (found := condition()):
            assert self.process.poll() is None, f"Airflow ended while waiting for {what}"
            assert time.monotonic() < deadline_s, f"timed out after {DEADLINE_S} s waiting for {what}"
            time.sleep(0.1)
        return found

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal to Airflow's supervisor and return its exit code."""
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


@contextmanager
def serve(home: Path, corpus: Path, out: Path, config: Path, **more: str) -> Iterator[LocalAirflow]:
    """Run the command of `make dags` on a free port, and stop it on exit; `more` is added to its environment."""
    variables = environment(home, config=config)
    del variables["AIRFLOW_HOME"], variables["AIRFLOW__CORE__DAGS_FOLDER"]
    command = [sys.executable, ROOT / "dags" / "serve.py", "--python", PYTHON, "--corpus", corpus, "--out", out,
               "--home", home, "--port", "0"]  # fmt: skip
    with subprocess.Popen(command, env=CLEAN | variables | more, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        lines = []
        try:
            for line in process.stderr:
                lines.append(line)
                if address := next((word for word in line.split() if word.startswith("http://")), None):
                    break
            else:
                raise AssertionError(f"Airflow did not start: {''.join(lines)}")
            yield LocalAirflow(process, address, home)
        finally:
            if process.poll() is None:
                process.terminate()
