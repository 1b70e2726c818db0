"""Complete runs without a scheduler: Airflow runs in this process, each command in the pipeline's environment."""

import io
import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from airflow.models.asset import AssetEvent
from airflow.sdk.exceptions import ParamValidationError
from airflow.utils.session import create_session
from pendulum import datetime
from sqlalchemy import select

from tests.dags.local_airflow import SMALL, STAGES, STRICT, add_recordings, load_dags, make_corpus, pipeline


@pytest.fixture(scope="module", name="train")
def train_fixture() -> Any:
    return load_dags().dags["language_id_train"]


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module", name="config")
def config_fixture(folder: Path) -> Path:
    file = folder / "run.yaml"
    file.write_text(SMALL)
    return file


@pytest.fixture(scope="module", name="corpus")
def corpus_fixture(folder: Path, config: Path) -> Path:
    return make_corpus(folder / "made", config)


def states(run: Any) -> dict[str, str]:
    """Return the state of each task of a run, in the order of the stages."""
    found = {task.task_id: str(task.state) for task in run.get_task_instances()}
    return {stage: found[stage] for stage in STAGES}


@dataclass
class Outcome:
    """A run, and the settings in all promotion events up to its end."""

    run: Any
    promotions: list[dict[str, str]]


def outcome(run: Any) -> Outcome:
    with create_session() as session:
        return Outcome(run, list(session.scalars(select(AssetEvent.extra))))


@pytest.fixture(scope="module", name="paths")
def paths_fixture(folder: Path, corpus: Path, config: Path) -> dict[str, str]:
    shutil.copytree(corpus, folder / "nightly")
    return {"corpus": str(folder / "nightly"), "out": str(folder / "out"), "config": str(config)}


@pytest.fixture(scope="module", name="first")
def first_fixture(train: Any, paths: dict[str, str]) -> Outcome:
    """A run that trains the first model."""
    return outcome(train.test(logical_date=datetime(2026, 1, 1, 2), run_conf=paths))


@pytest.fixture(scope="module", name="unchanged")
def unchanged_fixture(train: Any, paths: dict[str, str], first: Outcome) -> Outcome:
    """A second run on the same recordings."""
    return outcome(train.test(logical_date=datetime(2026, 1, 2, 2), run_conf=paths))


@pytest.fixture(scope="module", name="kept")
def kept_fixture(train: Any, paths: dict[str, str], folder: Path, unchanged: Outcome) -> Outcome:
    """A third run, with new recordings and a promotion rule that no model can satisfy."""
    strict = folder / "strict.yaml"
    strict.write_text(STRICT)
    add_recordings(Path(paths["corpus"]), "speaker_77")
    return outcome(train.test(logical_date=datetime(2026, 1, 3, 2), run_conf={**paths, "config": str(strict)}))


def test_a_first_run_completes_all_stages(first: Outcome) -> None:
    assert (first.run.state, states(first.run)) == ("success", dict.fromkeys(STAGES, "success"))


def test_a_promotion_publishes_one_event_with_the_settings_of_its_run(first: Outcome, paths: dict[str, str]) -> None:
    assert first.promotions == [{**paths, "cluster": "local", "max_failed_fraction": "0.01"}]


def test_a_run_without_new_recordings_skips_all_stages(unchanged: Outcome) -> None:
    assert (unchanged.run.state, states(unchanged.run)) == ("success", dict.fromkeys(STAGES, "skipped"))


def test_a_run_that_keeps_the_champion_skips_only_its_promotion(kept: Outcome) -> None:
    assert kept.run.state == "success"
    assert states(kept.run) == {**dict.fromkeys(STAGES, "success"), "promote": "skipped"}


def test_a_run_that_keeps_the_champion_publishes_no_event(kept: Outcome, first: Outcome) -> None:
    assert kept.promotions == first.promotions


class Webhook(BaseHTTPRequestHandler):
    """Store the JSON documents that are posted to it."""

    posted: ClassVar[list[dict[str, str]]] = []

    def do_POST(self) -> None:
        self.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Write no log."""


@pytest.fixture(scope="module", name="webhook")
def webhook_fixture() -> Iterator[list[dict[str, str]]]:
    server = HTTPServer(("127.0.0.1", 0), Webhook)
    Thread(target=server.serve_forever, daemon=True).start()
    connection = {"conn_type": "http", "password": f"http://127.0.0.1:{server.server_port}/services/a"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_CONN_LANGUAGE_ID_ALERTS", json.dumps(connection))
        yield Webhook.posted
    server.shutdown()
    server.server_close()


@dataclass
class Failure:
    """A failed run, the output of its tasks, the log of the alert and the documents posted to the webhook."""

    run: Any
    output: str
    alerts: str
    posted: list[dict[str, str]]


@pytest.fixture(scope="module", name="failure")
def failure_fixture(train: Any, corpus: Path, config: Path, folder: Path, webhook: list[dict[str, str]]) -> Failure:
    """A run in which 6 of 186 recordings are unreadable, more than the allowed fraction."""
    damaged = folder / "damaged"
    shutil.copytree(corpus, damaged)
    for number in range(6):
        (damaged / "alba" / "speaker_00" / f"broken_{number}.wav").write_text("no audio")
    conf = {"corpus": str(damaged), "out": str(folder / "failed"), "config": str(config)}
    output, alerts = io.StringIO(), io.StringIO()
    handler = logging.StreamHandler(alerts)
    logger = logging.getLogger("airflow.task.language_id")
    logger.addHandler(handler)
    try:
        with redirect_stdout(output):
            run = train.test(logical_date=datetime(2026, 2, 1, 2), run_conf=conf)
    finally:
        logger.removeHandler(handler)
    return Failure(run, output.getvalue(), alerts.getvalue(), list(webhook))


def test_too_many_failed_recordings_fail_the_run(failure: Failure) -> None:
    assert failure.run.state == "failed"
    assert (states(failure.run)["extract"], states(failure.run)["verify"]) == ("failed", "upstream_failed")


def test_a_permanent_failure_is_not_retried(failure: Failure) -> None:
    (extract,) = (task for task in failure.run.get_task_instances() if task.task_id == "extract")
    assert extract.try_number == 1


def test_the_log_of_a_failed_task_gives_the_reason(failure: Failure) -> None:
    assert "too many recordings failed" in failure.output
    assert "6 of 186 recordings failed, more than --max-failed-fraction 0.01 allows" in failure.output


def test_a_failed_run_is_logged(failure: Failure) -> None:
    assert failure.alerts == f"language_id_train: the run {failure.run.run_id} failed in extract\n"


def test_a_failed_run_is_posted_to_the_webhook(failure: Failure) -> None:
    assert failure.posted == [{"text": f"language_id_train: the run {failure.run.run_id} failed in extract"}]


@pytest.mark.parametrize(
    ("name", "value"),
    [("corpus", "recordings"), ("out", 7), ("cluster", "two words"), ("max_failed_fraction", 1.5)],
)
def test_an_invalid_parameter_is_refused(train: Any, name: str, value: object) -> None:
    with pytest.raises(ParamValidationError, match=f"param {name}"):
        train.test(logical_date=datetime(2026, 3, 1, 2), run_conf={name: value})


def test_a_parameter_is_never_executed_by_the_shell(train: Any, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    path = f"/nowhere/$(touch {trap})'\"; touch {trap}; `touch {trap}`"
    run = train.test(logical_date=datetime(2026, 4, 1, 2), run_conf={"corpus": path, "out": str(tmp_path / "out")})
    assert states(run)["scan"] == "failed"
    assert not trap.exists()
    assert pipeline("scan", "--corpus", path, "--out", tmp_path / "other").returncode == 2
