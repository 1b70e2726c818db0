"""What `make dags` starts: a real scheduler with a run per minute, killed tasks, backfills, the web page, its stop."""

import json
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.dags.local_airflow import (
    DEADLINE_S,
    FINISHED,
    QUICK,
    SMALL,
    STAGES,
    LocalAirflow,
    add_recordings,
    airflow,
    make_corpus,
    pipeline,
    processes_of,
    serve,
    stage_processes,
    store_bytes,
)  # fmt: skip
from tests.support.browser import browse, needs_chromium

TRAIN, REPORT, SNAPSHOTS = "language_id_train", "language_id_report", "language_id_snapshots"
SHARDS = 113


@pytest.fixture(scope="module", name="folder")
def folder_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scheduled")
    (folder / "run.yaml").write_text(SMALL)
    make_corpus(folder, folder / "run.yaml")
    return folder


@pytest.fixture(scope="module", name="here")
def airflow_fixture(folder: Path) -> Iterator[LocalAirflow]:
    paths = (folder / "home", folder / "corpus", folder / "out", folder / "run.yaml")
    with serve(*paths, LANGUAGE_ID_SCHEDULE="* * * * *", **QUICK) as running:
        yield running


def finished_runs(here: LocalAirflow) -> list[dict[str, Any]]:
    """Return the finished runs of the nightly DAG in the order of their start."""
    return [run for run in here.runs(TRAIN) if run["state"] in FINISHED]


def finished_task(here: LocalAirflow, run: str, task: str) -> Any:
    """Return a task instance if it has finished."""
    found = here.tasks(TRAIN, run)[task]
    return found["state"] in FINISHED and found


def shards(out: Path) -> int:
    """Return the number of completed shards."""
    return len(list(out.glob("shards/*.json")))


def extraction(out: Path) -> psutil.Process | None:
    """Return the process that runs the extract stage on `out`, if there is one."""
    return next((process for process in stage_processes(out) if process.info["cmdline"][3] == "extract"), None)


@dataclass
class Interrupted:
    """A finished run whose worker was killed during extraction."""

    run: dict[str, Any]
    worker_title: str
    survivors: list[psutil.Process]
    shards_at_kill: int
    store: dict[str, bytes]


@pytest.fixture(scope="module", name="interrupted")
def interrupted_fixture(here: LocalAirflow, folder: Path) -> Interrupted:
    """Kill the worker of the first run's extract task, and wait for the run to finish."""
    out = folder / "out"
    command = here.wait(lambda: extraction(out), "the extract stage")
    task = command.parent()
    worker = task.parent()
    title = " ".join(worker.cmdline())
    here.wait(lambda: shards(out) > 3, "some shards")
    for process in (worker, task):
        process.kill()
    _, survivors = psutil.wait_procs([command], timeout=DEADLINE_S)
    shards_at_kill = shards(out)
    (run,) = here.wait(lambda: finished_runs(here)[:1], "the first run")
    return Interrupted(run, title, survivors, shards_at_kill, store_bytes(out))


def test_the_command_of_a_killed_worker_ends_amid_extraction(interrupted: Interrupted) -> None:
    assert "LocalExecutor" in interrupted.worker_title
    assert interrupted.survivors == []
    assert interrupted.shards_at_kill < SHARDS


def test_a_scheduled_run_completes_after_its_worker_was_killed(here: LocalAirflow, interrupted: Interrupted) -> None:
    assert (interrupted.run["run_type"], interrupted.run["state"]) == ("scheduled", "success")
    assert here.task_states(TRAIN, interrupted.run["dag_run_id"]) == dict.fromkeys(STAGES, "success")


def test_a_killed_task_is_retried_once(here: LocalAirflow, interrupted: Interrupted) -> None:
    assert here.tasks(TRAIN, interrupted.run["dag_run_id"])["extract"]["try_number"] == 2


def test_the_store_of_an_interrupted_run_equals_that_of_an_uninterrupted_one(
    interrupted: Interrupted, folder: Path
) -> None:
    plain = folder / "plain"
    for stage in ("scan", "extract"):
        done = pipeline(stage, "--corpus", folder / "corpus", "--out", plain, "--config", folder / "run.yaml")
        assert done.returncode == 0, done.stderr
    assert shards(plain) == SHARDS
    assert interrupted.store == store_bytes(plain)


@pytest.fixture(scope="module", name="unchanged")
def unchanged_fixture(here: LocalAirflow, interrupted: Interrupted) -> dict[str, Any]:
    """The second run, which finds no new recordings."""
    run: dict[str, Any] = here.wait(lambda: finished_runs(here)[1:2], "the second run")[0]
    return run


def appending_run(here: LocalAirflow) -> dict[str, Any] | None:
    """Return the first run after the second that did not skip extraction, once it has finished."""
    later = finished_runs(here)[2:]
    return next((r for r in later if here.task_states(TRAIN, r["dag_run_id"])["extract"] != "skipped"), None)


@pytest.fixture(scope="module", name="appended")
def appended_fixture(here: LocalAirflow, folder: Path, unchanged: dict[str, Any]) -> dict[str, Any]:
    """The run that appends new recordings; another unchanged run may have started before they were added."""
    add_recordings(folder / "corpus", "speaker_77")
    run: dict[str, Any] = here.wait(lambda: appending_run(here), "a run with the new recordings")
    return run


def test_a_scheduled_run_without_new_recordings_skips_all_stages(
    here: LocalAirflow, unchanged: dict[str, Any]
) -> None:
    assert (unchanged["run_type"], unchanged["state"]) == ("scheduled", "success")
    assert here.task_states(TRAIN, unchanged["dag_run_id"]) == dict.fromkeys(STAGES, "skipped")


def test_a_scheduled_run_with_new_recordings_completes(here: LocalAirflow, appended: dict[str, Any]) -> None:
    assert (appended["run_type"], appended["state"]) == ("scheduled", "success")
    states = here.task_states(TRAIN, appended["dag_run_id"])
    assert states.pop("promote") in ("success", "skipped")
    assert states == dict.fromkeys(states, "success")


def test_a_scheduled_run_extracts_the_new_recordings(folder: Path, appended: dict[str, Any]) -> None:
    recordings = json.loads((folder / "out" / "run.json").read_text())["stages"]["extract"]["recordings"]
    assert recordings["ok"] == len(list((folder / "corpus").rglob("*.flac"))) == 195


def test_scheduled_runs_do_not_overlap(here: LocalAirflow, appended: dict[str, Any]) -> None:
    runs = finished_runs(here)
    assert len(runs) > 2
    assert all(earlier["end_date"] < later["start_date"] for earlier, later in pairwise(runs))


def test_each_promotion_triggers_one_report(here: LocalAirflow, appended: dict[str, Any]) -> None:
    promotions = 1 if here.task_states(TRAIN, appended["dag_run_id"])["promote"] == "skipped" else 2
    here.wait(lambda: len(here.runs(REPORT)) >= promotions, "the reports of all promotions")
    assert {run["run_type"] for run in here.runs(REPORT)} == {"asset_triggered"}
    assert len(here.runs(REPORT)) == here.get("assets/events")["total_entries"] == promotions


@pytest.mark.long
def test_a_backfill_evaluates_past_days(here: LocalAirflow, folder: Path, appended: dict[str, Any]) -> None:
    registry = folder / "out" / "registry" / "registry.json"
    today = date.today()
    three_days_ago = (today - timedelta(days=3)).isoformat()
    days = [(today - timedelta(days=n)).isoformat() for n in (2, 1)]
    # move the promotions to a day before those of the backfill
    registry.write_text(re.sub(r'("at": ?")\d{4}-\d\d-\d\d', rf"\g<1>{three_days_ago}", registry.read_text()))
    airflow(here.home, "dags", "unpause", SNAPSHOTS)
    airflow(here.home, "backfill", "create", "--dag-id", SNAPSHOTS, "--from-date", days[0], "--to-date", days[1])
    metrics = [folder / "out" / "metrics" / f"as-of-{day}.json" for day in days]
    here.wait(lambda: len([r for r in here.runs(SNAPSHOTS) if r["state"] == "success"]) >= 2, "the backfill")
    assert all(file.exists() for file in metrics)


@pytest.fixture(scope="module", name="manual")
def manual_fixture(here: LocalAirflow, folder: Path, appended: dict[str, Any]) -> str:
    """The id of a run that is triggered by hand, on its own output folder."""
    answer = here.trigger(TRAIN, out=str(folder / "own"))
    assert answer.status_code == 200, answer.text
    run: str = answer.json()["dag_run_id"]
    return run


def test_a_running_task_links_to_the_dask_dashboard_until_it_ends(here: LocalAirflow, manual: str) -> None:
    def dashboard() -> Any:
        return here.get(f"dags/{TRAIN}/dagRuns/{manual}/taskInstances/extract/links")["extra_links"]["Dask dashboard"]

    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/pipeline", here.wait(dashboard, "the link to the dashboard"))
    here.wait(lambda: finished_task(here, manual, "extract"), "the end of extraction")
    here.wait(lambda: not dashboard(), "the removal of the link")


def test_a_manual_run_writes_to_its_own_output_folder(here: LocalAirflow, folder: Path, manual: str) -> None:
    assert here.wait(lambda: finished_task(here, manual, "extract"), "the end of extraction")["state"] == "success"
    assert shards(folder / "own") >= SHARDS


def manual_runs(here: LocalAirflow) -> list[str]:
    return [run["dag_run_id"] for run in here.runs(TRAIN) if run["run_type"] == "manual"]


def test_an_invalid_parameter_is_refused_and_starts_no_run(here: LocalAirflow) -> None:
    before = manual_runs(here)
    answer = here.trigger(TRAIN, corpus="recordings")
    assert answer.status_code == httpx.codes.BAD_REQUEST
    assert "corpus" in answer.text
    assert manual_runs(here) == before


@needs_chromium
def test_the_web_page_shows_the_schedule_and_all_stages(here: LocalAirflow, tmp_path: Path) -> None:
    def shown() -> bool:
        page = browse(f"{here.url}/dags/{TRAIN}", tmp_path, "--dump-dom")
        return all(text in page for text in ("* * * * *", *STAGES))

    here.wait(shown, "the schedule and all stages on the page")


@dataclass
class Resumed:
    """Airflow stopped during extraction and started again."""

    processes_before: int
    exit_code: int
    shards_at_stop: int
    processes_after: list[psutil.Process]
    extract: dict[str, Any]


@pytest.fixture(scope="module", name="resumed")
def resumed_fixture(folder: Path) -> Resumed:
    home, out = folder / "other", folder / "stopped"
    paths = (home, folder / "corpus", out, folder / "run.yaml")
    with serve(*paths) as here:
        here.wait(lambda: extraction(out), "the extract stage")
        before = len(processes_of(home))
        here.wait(lambda: shards(out) > 3, "some shards")
        exit_code = here.stop(signal.SIGINT)
        shards_at_stop, after = shards(out), processes_of(home)
    with serve(*paths) as here:
        (run,) = here.runs(TRAIN)
        extract = here.wait(lambda: finished_task(here, run["dag_run_id"], "extract"), "the end of extraction")
    return Resumed(before, exit_code, shards_at_stop, after, extract)


@pytest.mark.long
def test_stopping_airflow_amid_a_stage_leaves_no_process(resumed: Resumed) -> None:
    assert resumed.processes_before > 5
    assert resumed.exit_code == 128 + signal.SIGINT
    assert resumed.processes_after == []


@pytest.mark.long
def test_the_next_start_retries_a_stage_that_was_stopped(resumed: Resumed) -> None:
    assert resumed.shards_at_stop < SHARDS
    assert (resumed.extract["state"], resumed.extract["try_number"]) == ("success", 2)


def test_sigterm_stops_airflow_and_leaves_no_process(here: LocalAirflow) -> None:
    """The last test of the module, because it stops the Airflow that the others use."""
    assert processes_of(here.home)
    assert here.stop() == 128 + signal.SIGTERM
    assert processes_of(here.home) == []
