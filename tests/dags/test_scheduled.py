"""What `make dags` starts: a real scheduler with a schedule of every minute, killed tasks, its page, its end."""

import json
import re
import signal
from collections.abc import Iterator
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.browser import browse, needs_chromium

from tests.dags.local_airflow import (
    QUICK,
    SMALL,
    LocalAirflow,
    add_recordings,
    airflow,
    drivers,
    make_corpus,
    pipeline,
    processes_of,
    serve,
    store_bytes,
)  # fmt: skip

TRAIN, REPORT, SNAPSHOTS = "language_id_train", "language_id_report", "language_id_snapshots"


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scheduled")
    (folder / "run.yaml").write_text(SMALL)
    make_corpus(folder, folder / "run.yaml")
    return folder


@pytest.fixture(scope="module", name="here")
def airflow_fixture(folder: Path) -> Iterator[LocalAirflow]:
    place = (folder / "home", folder / "corpus", folder / "out", folder / "run.yaml")
    with serve(*place, LANGUAGE_ID_SCHEDULE="* * * * *", **QUICK) as running:
        yield running


def finished(here: LocalAirflow, number: int) -> Any:
    """Return the run of this number, from 0, once it is over."""
    runs = here.runs(TRAIN)
    return len(runs) > number and runs[number]["state"] in ("success", "failed") and runs[number]


def test_a_scheduled_run_whose_worker_is_killed_amid_extraction_ends_with_the_same_bytes(
    here: LocalAirflow, folder: Path
) -> None:
    out, plain = folder / "out", folder / "plain"
    here.wait(lambda: len(list(out.glob("shards/*.json"))) > 3, "some shards")
    (driver,) = drivers(out)
    assert driver.cmdline()[3] == "extract"
    runner = driver.parent()
    worker = runner.parent()
    assert "LocalExecutor" in " ".join(worker.cmdline())
    for process in (worker, runner):
        process.kill()
    driver.wait(30)  # it ends with its worker
    assert len(list(out.glob("shards/*.json"))) < 110

    run = here.wait(lambda: finished(here, 0), "the first run")
    assert (run["run_type"], run["state"]) == ("scheduled", "success")
    tasks = here.tasks(TRAIN, run["dag_run_id"])
    assert {name: task["state"] for name, task in tasks.items()} == dict.fromkeys(tasks, "success")
    assert tasks["extract"]["try_number"] == 2
    for stage in ("scan", "extract"):
        done = pipeline(stage, "--corpus", folder / "corpus", "--out", plain, "--config", folder / "run.yaml")
        assert done.returncode == 0, done.stderr
    assert store_bytes(out) == store_bytes(plain)


def took_in(here: LocalAirflow) -> dict[str, Any] | None:
    """Return the first run after the first that has ended and did not skip."""
    ended = [run for run in here.runs(TRAIN)[1:] if run["state"] in ("success", "failed")]
    return next((r for r in ended if here.tasks(TRAIN, r["dag_run_id"])["extract"]["state"] != "skipped"), None)


def test_a_scheduled_run_without_new_recordings_skips_and_the_next_takes_what_came(
    here: LocalAirflow, folder: Path
) -> None:
    idle = here.wait(lambda: finished(here, 1), "the second run")
    assert (idle["run_type"], idle["state"]) == ("scheduled", "success")
    assert {task["state"] for task in here.tasks(TRAIN, idle["dag_run_id"]).values()} == {"skipped"}

    add_recordings(folder / "corpus", "speaker_77")
    run = here.wait(lambda: took_in(here), "a run that takes them in")  # one more may have begun before they came
    assert (run["run_type"], run["state"]) == ("scheduled", "success")
    tasks = {name: task["state"] for name, task in here.tasks(TRAIN, run["dag_run_id"]).items()}
    promoted = tasks.pop("promote")
    assert tasks == dict.fromkeys(tasks, "success")
    ledger = json.loads((folder / "out" / "run.json").read_text())["stages"]["extract"]["recordings"]
    assert ledger["ok"] == len(list((folder / "corpus").rglob("*.flac"))) == 195
    assert all(earlier["end_date"] < later["start_date"] for earlier, later in pairwise(here.runs(TRAIN)[:3]))

    reports = 1 if promoted == "skipped" else 2
    here.wait(lambda: len(here.runs(REPORT)) == reports, "the report of a promotion")
    assert here.runs(REPORT)[0]["run_type"] == "asset_triggered"
    assert here.get("assets/events")["total_entries"] == reports


def test_a_backfill_evaluates_days_past(here: LocalAirflow, folder: Path) -> None:
    decisions = folder / "out" / "registry" / "registry.json"
    today = date.today()
    first = (today - timedelta(days=3)).isoformat()
    days = [(today - timedelta(days=n)).isoformat() for n in (2, 1)]
    text = decisions.read_text()
    decisions.write_text(re.sub(r'("at": ?")\d{4}-\d\d-\d\d', rf"\g<1>{first}", text))  # as if promoted days ago
    airflow(here.home, "dags", "unpause", SNAPSHOTS)
    airflow(here.home, "backfill", "create", "--dag-id", SNAPSHOTS, "--from-date", days[0], "--to-date", days[1])
    here.wait(lambda: len([r for r in here.runs(SNAPSHOTS) if r["state"] == "success"]) >= 2, "the backfill")
    assert all((folder / "out" / "metrics" / f"as-of-{day}.json").exists() for day in days)


def test_the_dashboard_of_a_running_stage_is_a_link_on_its_task(here: LocalAirflow, folder: Path) -> None:
    """Also that a run of somebody's own is one run more, on a folder of its own."""
    answer = here.trigger(TRAIN, out=str(folder / "own"))
    assert answer.status_code == 200, answer.text
    run = answer.json()["dag_run_id"]
    link = f"dags/{TRAIN}/dagRuns/{run}/taskInstances/extract/links"
    found = here.wait(lambda: here.get(link)["extra_links"]["Dask dashboard"], "the link")
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/pipeline", found)
    here.wait(lambda: here.tasks(TRAIN, run)["extract"]["state"] == "success", "extraction")
    assert here.get(link)["extra_links"]["Dask dashboard"] in (None, "")


def test_a_bad_parameter_is_refused_where_it_is_given(here: LocalAirflow) -> None:
    before = len(here.runs(TRAIN))
    answer = here.trigger(TRAIN, corpus="recordings")
    assert answer.status_code == 400
    assert "corpus" in answer.text
    assert len([run for run in here.runs(TRAIN) if run["run_type"] == "manual"]) <= before


@needs_chromium
def test_the_page_shows_the_runs(here: LocalAirflow, tmp_path: Path) -> None:
    dom = browse(f"{here.url}/dags/{TRAIN}", tmp_path, "--dump-dom")
    assert all(stage in dom for stage in ("scan", "extract", "verify", "train", "evaluate", "promote", "report"))
    assert "* * * * *" in dom


def test_stopping_amid_a_stage_leaves_no_process_and_the_next_start_goes_on(folder: Path) -> None:
    home, out = folder / "other", folder / "stopped"
    place = (home, folder / "corpus", out, folder / "run.yaml")
    with serve(*place) as here:
        here.wait(lambda: len(list(out.glob("shards/*.json"))) > 3, "some shards")
        assert drivers(out)
        assert len(processes_of(home)) > 5
        assert here.stop(signal.SIGINT) == 128 + signal.SIGINT
        assert processes_of(home) == []
    with serve(*place) as here:
        (run,) = here.runs(TRAIN)
        extract = here.wait(lambda: ended(here.tasks(TRAIN, run["dag_run_id"])["extract"]), "extraction")
        assert (extract["state"], extract["try_number"]) == ("success", 2)


def ended(task: dict[str, Any]) -> Any:
    return task["state"] in ("success", "failed") and task


def test_it_ends_without_leaving_a_process(here: LocalAirflow) -> None:
    assert processes_of(here.home)
    assert here.stop() == 128 + signal.SIGTERM
    assert processes_of(here.home) == []
