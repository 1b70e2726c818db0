"""Whole runs without a scheduler: Airflow's part in this process, each command in the pipeline's environment."""

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import pytest
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.models.asset import AssetEvent
from airflow.sdk.exceptions import ParamValidationError
from airflow.utils.session import create_session
from pendulum import datetime
from sqlalchemy import func, select

from tests.dags.local_airflow import ROOT, SMALL, STRICT, add_recordings, make_corpus, pipeline

STAGES = ["scan", "extract", "verify", "train", "evaluate", "promote", "report"]


@pytest.fixture(scope="module", name="train")
def train_fixture() -> Any:
    bag = BundleDagBag(dag_folder=ROOT / "dags", bundle_path=ROOT / "dags", bundle_name="dags-folder")
    return bag.dags["language_id_train"]


@pytest.fixture(name="config")
def config_fixture(tmp_path: Path) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(SMALL)
    return file


@pytest.fixture(name="corpus")
def corpus_fixture(tmp_path: Path, config: Path) -> Path:
    return make_corpus(tmp_path / "made", config)


def states(run: Any) -> dict[str, str]:
    found = {task.task_id: str(task.state) for task in run.get_task_instances()}
    return {stage: found[stage] for stage in STAGES}


def promotions() -> int:
    with create_session() as session:
        return session.scalar(select(func.count(AssetEvent.id))) or 0


def test_from_recordings_to_a_model_that_serves_and_on_when_new_ones_come(
    train: Any, corpus: Path, config: Path, tmp_path: Path
) -> None:
    out, strict = tmp_path / "out", tmp_path / "strict.yaml"
    strict.write_text(STRICT)
    place = {"corpus": str(corpus), "out": str(out)}

    first = train.test(logical_date=datetime(2026, 1, 1, 2), run_conf={**place, "config": str(config)})
    assert (first.state, states(first)) == ("success", dict.fromkeys(STAGES, "success"))
    assert promotions() == 1
    with create_session() as session:
        extra = session.scalars(select(AssetEvent)).one().extra
    assert extra == {**place, "config": str(config), "cluster": "local", "max_failed_fraction": "0.01"}

    nothing_new = train.test(logical_date=datetime(2026, 1, 2, 2), run_conf={**place, "config": str(config)})
    assert (nothing_new.state, states(nothing_new)) == ("success", dict.fromkeys(STAGES, "skipped"))

    add_recordings(corpus, "speaker_77")
    kept = train.test(logical_date=datetime(2026, 1, 3, 2), run_conf={**place, "config": str(strict)})
    assert kept.state == "success"
    assert states(kept) == {**dict.fromkeys(STAGES, "success"), "promote": "skipped"}
    assert promotions() == 1


class Webhook(BaseHTTPRequestHandler):
    """Keeps what is posted to it."""

    posted: ClassVar[list[dict[str, str]]] = []

    def do_POST(self) -> None:
        self.posted.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Be quiet."""


@pytest.fixture(name="webhook")
def webhook_fixture(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, str]]]:
    server = HTTPServer(("127.0.0.1", 0), Webhook)
    Thread(target=server.serve_forever, daemon=True).start()
    connection = {"conn_type": "http", "password": f"http://127.0.0.1:{server.server_port}/services/a"}
    monkeypatch.setenv("AIRFLOW_CONN_LANGUAGE_ID_ALERTS", json.dumps(connection))
    yield Webhook.posted
    server.shutdown()
    server.server_close()


def test_too_many_failed_recordings_fail_the_run_at_once_and_somebody_is_told(
    train: Any,
    corpus: Path,
    config: Path,
    tmp_path: Path,
    webhook: list[dict[str, str]],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number in range(6):
        (corpus / "alba" / "speaker_00" / f"broken_{number}.wav").write_text("no audio")
    place = {"corpus": str(corpus), "out": str(tmp_path / "out"), "config": str(config)}
    run = train.test(logical_date=datetime(2026, 2, 1, 2), run_conf=place)
    assert run.state == "failed"
    (extract,) = (task for task in run.get_task_instances() if task.task_id == "extract")
    assert (extract.state, extract.try_number) == ("failed", 1)
    assert states(run)["verify"] == "upstream_failed"
    output = capsys.readouterr().out + caplog.text
    assert "too many recordings failed" in output
    assert "6 of 186 recordings failed, more than --max-failed-fraction 0.01 allows" in output
    assert f"language_id_train: the run {run.run_id} failed in extract" in output
    assert webhook == [{"text": f"language_id_train: the run {run.run_id} failed in extract"}]


@pytest.mark.parametrize(
    ("name", "value"),
    [("corpus", "recordings"), ("out", 7), ("cluster", "two words"), ("max_failed_fraction", 1.5)],
)
def test_a_parameter_that_cannot_be_meant_is_refused(train: Any, name: str, value: object) -> None:
    with pytest.raises(ParamValidationError, match=f"param {name}"):
        train.test(logical_date=datetime(2026, 3, 1, 2), run_conf={name: value})


def test_a_value_is_never_shell_text(train: Any, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    place = f"/nowhere/$(touch {trap})'\"; touch {trap}; `touch {trap}`"
    run = train.test(logical_date=datetime(2026, 4, 1, 2), run_conf={"corpus": place, "out": str(tmp_path / "out")})
    assert states(run)["scan"] == "failed"
    assert not trap.exists()
    assert pipeline("scan", "--corpus", place, "--out", tmp_path / "other").returncode == 2
