"""Whole runs that are killed, interrupted, repeated, and spread over other numbers of workers."""

import json
import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.support.gate import Gate
from tests.support.whole_system import SMALL, finished_shards, run, run_until, store_bytes, write_corpus

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"), recordings=12)


@pytest.fixture(scope="module")
def uninterrupted(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder that one serial run finished."""
    out = tmp_path_factory.mktemp("uninterrupted")
    result = run("--corpus", corpus, "--out", out, "--executor", "serial", *SMALL)
    assert result.returncode == 0, result.stderr
    return out


def test_a_finished_run_leaves_every_promised_file(uninterrupted: Path) -> None:
    promised = [
        "manifest.parquet", "ledger.parquet", "features.zarr/zarr.json", "report/index.html", "run.json",
        "models/ann/model.keras", "models/ann/labels.json", "models/ann/history.csv", "metrics/ann.json",
        "models/lstm/model.keras", "models/lstm/labels.json", "models/lstm/history.csv", "metrics/lstm.json",
    ]  # fmt: skip
    assert [name for name in promised if not (uninterrupted / name).is_file()] == []
    assert finished_shards(uninterrupted) > 20
    for path in uninterrupted.rglob("*.json"):
        json.loads(path.read_text(), parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


@pytest.mark.long  # tests/runtime/test_hosts.py compares clusters with one process
@pytest.mark.parametrize("workers", [1, 2])
def test_the_store_has_the_same_bytes_with_any_number_of_workers(
    corpus: Path, uninterrupted: Path, tmp_path: Path, workers: int
) -> None:
    for stage in ("scan", "extract"):
        result = run(stage, "--corpus", corpus, "--out", tmp_path, "--workers", str(workers), *SMALL)
        assert result.returncode == 0, result.stderr
    assert store_bytes(tmp_path) == store_bytes(uninterrupted)


@pytest.mark.parametrize("executor", [pytest.param("serial", marks=pytest.mark.long), "dask"])
def test_a_run_killed_in_extraction_continues_to_the_same_bytes(
    corpus: Path, uninterrupted: Path, tmp_path: Path, executor: str
) -> None:
    arguments = ("--corpus", corpus, "--out", tmp_path, "--executor", executor, "--workers", "2", *SMALL)
    half = finished_shards(uninterrupted) // 2
    run("scan", *arguments)
    gate = Gate.at(tmp_path / "gate", tmp_path / "shards", half)
    killed = run_until(
        lambda _: finished_shards(tmp_path) >= half, signal.SIGKILL, "extract", *arguments,
        environment=gate.environment,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    at_kill = finished_shards(tmp_path)
    assert half <= at_kill < finished_shards(uninterrupted)
    assert not (tmp_path / "ledger.parquet").exists()

    result = run("extract", *arguments)

    assert result.returncode == 0, result.stderr
    already = re.search(r"(\d+) of \d+ shards are finished already", result.stderr)
    assert already is not None
    assert int(already[1]) >= at_kill
    assert store_bytes(tmp_path) == store_bytes(uninterrupted)
    assert (tmp_path / "ledger.parquet").read_bytes() == (uninterrupted / "ledger.parquet").read_bytes()


def test_a_second_run_does_nothing_and_says_so(corpus: Path, uninterrupted: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.name != "run.json"}
    result = run("--corpus", corpus, "--out", uninterrupted, *SMALL)
    assert result.returncode == 0, result.stderr
    stages = ("scan", "extract", "verify", "train/ann", "train/lstm", "evaluate/ann", "evaluate/lstm", "report")
    assert [stage for stage in stages if f"{stage}: unchanged, nothing to do" not in result.stderr] == []
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*") if path.name != "run.json"} == before


def test_a_stage_whose_output_is_gone_runs_again(corpus: Path, uninterrupted: Path) -> None:
    metrics = uninterrupted / "metrics" / "ann.json"
    before = metrics.read_bytes()
    metrics.unlink()
    result = run("evaluate", "--out", uninterrupted, *SMALL)
    assert result.returncode == 0, result.stderr
    assert "evaluate/lstm: unchanged" in result.stderr
    assert "evaluate/ann: unchanged" not in result.stderr
    assert metrics.read_bytes() == before


# what a stage leaves, without which it runs again
LEAVES = {
    "scan": ["manifest.parquet", "features.zarr", "shards", "ledger.parquet"],
    "extract": ["features.zarr", "shards", "ledger.parquet"],
    "verify": [],
    "train": ["models"],
    "evaluate": ["metrics"],
    "report": ["report"],
}


@pytest.mark.parametrize(
    "stage",
    [stage if stage in ("extract", "train") else pytest.param(stage, marks=pytest.mark.long) for stage in LEAVES],
)
def test_ctrl_c_ends_any_stage_with_one_line_and_the_same_command_continues(
    corpus: Path, uninterrupted: Path, tmp_path: Path, stage: str
) -> None:
    out = tmp_path / "out"
    shutil.copytree(uninterrupted, out)
    for name in LEAVES[stage]:
        shutil.rmtree(out / name) if (out / name).is_dir() else (out / name).unlink()
    arguments = (stage, "--corpus", corpus, "--out", out, "--workers", "2", *SMALL)
    begun = {"train": "train ann: epoch 1"}.get(stage, ": begins")

    interrupted = run_until(lambda log: begun in log, signal.SIGINT, *arguments)

    assert interrupted.returncode == 130, interrupted.stderr
    assert "interrupted; the same command continues" in interrupted.stderr.splitlines()[-1]
    assert "Traceback" not in interrupted.stderr
    if stage == "train":  # the record of an earlier model is not that of this one
        assert {"train/ann", "train/lstm"} & set(json.loads((out / "run.json").read_text())["stages"]) == {
            "train/lstm"
        }
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert ("continuing after epoch 1" in result.stderr) == (stage == "train")


@pytest.mark.long
def test_ctrl_c_in_the_first_epoch_of_other_settings_keeps_the_model(uninterrupted: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(uninterrupted, tmp_path / "out"))
    before = {path: path.read_bytes() for path in (out / "models").rglob("*") if path.is_file()}
    arguments = ("train", "--out", out, *SMALL, "--set=models.ann=null", "--set=models.lstm.units=9")
    interrupted = run_until(lambda log: "the present model stays" in log, signal.SIGINT, *arguments)
    assert interrupted.returncode == 130, interrupted.stderr
    assert "epoch 1" not in interrupted.stderr
    assert {path: path.read_bytes() for path in (out / "models").rglob("*") if path.is_file()} == before
    assert "train/lstm" in json.loads((out / "run.json").read_text())["stages"]


@pytest.mark.long
def test_ctrl_c_ends_the_demo_and_the_same_command_goes_on_with_its_corpus(tmp_path: Path) -> None:
    arguments = ("demo", "--out", tmp_path, "--executor", "serial", *SMALL, "--set=models.lstm=null")
    arguments += ("--set=demo.utterances_per_speaker=1", "--set=demo.speakers_per_language=8")
    files = tmp_path / "corpus"
    interrupted = run_until(lambda _: len(list(files.rglob("*.flac"))) > 2, signal.SIGINT, *arguments)
    assert interrupted.returncode == 130, interrupted.stderr
    assert "Traceback" not in interrupted.stderr
    made = {path: path.stat().st_mtime_ns for path in files.rglob("*.flac")}
    assert 2 < len(made) < 24
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "report" / "index.html").is_file()
    assert {path: path.stat().st_mtime_ns for path in made} == made


@pytest.mark.parametrize(
    ("signum", "exit_code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGHUP, 129, marks=pytest.mark.long)]
)
def test_other_signals_end_a_run_with_one_line_and_leave_no_file(
    corpus: Path, tmp_path: Path, signum: signal.Signals, exit_code: int
) -> None:
    arguments = ("--corpus", corpus, "--out", tmp_path, *SMALL)
    result = run_until(lambda log: "extract: dashboard" in log, signum, *arguments)
    assert result.returncode == exit_code, result.stderr
    assert result.stderr.splitlines()[-1].endswith(f"ended by {signum.name}; the same command continues")
    assert "Traceback" not in result.stderr
    assert "leaked" not in result.stderr
    assert list(tmp_path.glob(".*")) == []
