"""What the tests of the DAGs share: an Airflow of their own, the pipeline's command line, small corpora."""

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
DEADLINE_S = 240
# a corpus of 12 minutes in 113 shards, so that there is a middle to be killed in, and enough to do better than chance
SMALL = """
demo: {speakers_per_language: 12, utterances_per_speaker: 5, utterance_s: 4.0}
store: {sequences_per_chunk: 32, chunks_per_shard: 1}
models:
  ann: null
  lstm: {units: 40, max_epochs: 10, patience: 10, batch_size: 50, learning_rate: 0.003}
promotion: {confidence: 0.0}
"""
# how long until Airflow misses a worker that was killed; a task that lives is heard of every 5 s
QUICK = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "20",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "2",
}
STRICT = SMALL.replace("confidence: 0.0", "min_gain: 0.99")


def environment(home: Path, **variables: object) -> dict[str, str]:
    """Return the environment of an Airflow in `home` whose Variables language_id_NAME are given."""
    values = {"python": PYTHON, **variables}
    return {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "dags"),
        "AIRFLOW__CORE__DEFAULT_TASK_RETRY_DELAY": "1",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        **{f"AIRFLOW_VAR_LANGUAGE_ID_{name.upper()}": str(value) for name, value in values.items()},
    }


# SQLite refuses to write in a transaction that read before somebody else wrote; Airflow undoes it, to be tried again
@tenacity.retry(
    retry=tenacity.retry_if_exception_message(match="(?s).*database is locked"),
    stop=tenacity.stop_after_delay(DEADLINE_S),
    reraise=True,
)
def airflow(home: Path, *arguments: str) -> None:
    """Run a command of Airflow, which must succeed."""
    command = [sys.executable, "-m", "airflow", *arguments]
    result = subprocess.run(
        command, env=CLEAN | environment(home), capture_output=True, text=True, timeout=DEADLINE_S, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr


def pipeline(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the pipeline's command line as a person would; the log is in `stderr`."""
    command = [PYTHON, "-m", "pipeline.run", *map(str, arguments)]
    return subprocess.run(command, env=CLEAN, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def make_corpus(folder: Path, config: Path) -> Path:
    """Synthesise the demo's corpus below `folder` and return its place."""
    made = pipeline("synthesise", "--out", folder, "--config", config, "--executor", "serial")
    assert made.returncode == 0, made.stderr
    return folder / "corpus"


def add_recordings(corpus: Path, speaker: str) -> None:
    """Let another speaker of each language bring what the first one said."""
    for language in sorted(corpus.iterdir()):
        shutil.copytree(language / "speaker_00", language / speaker)


def store_bytes(out: Path) -> dict[str, bytes]:
    """Return every file of the store by its path, with the shards' records."""
    folders = (out / "features.zarr", out / "shards")
    return {str(p.relative_to(out)): p.read_bytes() for folder in folders for p in folder.rglob("*") if p.is_file()}


def drivers(out: Path) -> list[psutil.Process]:
    """Return the processes that run a stage on `out`, without those that wait for their turn."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if words[1:3] == ["-m", "pipeline.run"] and str(out) in words:
            found.append(process)
    return found


def processes_of(home: Path) -> list[psutil.Process]:
    """Return all processes of an Airflow in `home`, by their environment or a file there that they have open.

    Its workers write their titles over their environment.
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
    """What `make dags` starts, and its REST API."""

    process: subprocess.Popen[str]
    url: str
    home: Path

    def get(self, path: str, **query: str) -> Any:
        response = httpx.get(f"{self.url}/api/v2/{path}", params=query, timeout=30)
        response.raise_for_status()
        return response.json()

    def trigger(self, dag: str, **conf: object) -> httpx.Response:
        body = {"logical_date": None, "conf": conf}
        return httpx.post(f"{self.url}/api/v2/dags/{dag}/dagRuns", json=body, timeout=30)

    def runs(self, dag: str) -> list[dict[str, Any]]:
        """Return the runs in the order in which they began."""
        found: list[dict[str, Any]] = self.get(f"dags/{dag}/dagRuns", order_by="start_date", limit="100")["dag_runs"]
        return found

    def tasks(self, dag: str, run: str) -> dict[str, dict[str, Any]]:
        """Return the task instances of a run by their names."""
        found = self.get(f"dags/{dag}/dagRuns/{run}/taskInstances")["task_instances"]
        return {task["task_id"]: task for task in found}

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = DEADLINE_S) -> Any:
        """Return what the condition gives once it holds."""
        deadline_s = time.monotonic() + seconds
        while not (found := condition()):
            assert self.process.poll() is None, f"Airflow ended before {what}"
            assert time.monotonic() < deadline_s, f"never came to it: {what}"
            time.sleep(0.2)
        return found

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(DEADLINE_S)


@contextmanager
def serve(home: Path, corpus: Path, out: Path, config: Path, **more: str) -> Iterator[LocalAirflow]:
    """Run what `make dags` runs on a free port, and stop it; `more` is added to its environment."""
    given = environment(home, config=config)
    del given["AIRFLOW_HOME"], given["AIRFLOW__CORE__DAGS_FOLDER"]
    command = [sys.executable, ROOT / "dags" / "serve.py", "--python", PYTHON, "--corpus", corpus, "--out", out,
               "--home", home, "--port", "0"]  # fmt: skip
    with subprocess.Popen(command, env=CLEAN | given | more, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        try:
            line = next((line for line in process.stderr if "http://" in line), "")
            assert line, f"Airflow did not start: {process.wait()}"
            yield LocalAirflow(process, next(word for word in line.split() if word.startswith("http://")), home)
        finally:
            if process.poll() is None:
                process.terminate()
