"""Whole runs on a corpus that grows and shrinks: each command a process, some of them killed."""

import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.support.appending import check_contract, features_by_place, ledger_of, manifest_of, split_of_speaker
from tests.support.gate import Gate
from tests.support.whole_system import SMALL, finished_shards, run, run_until, store_bytes, write_corpus

pytestmark = pytest.mark.slow


def succeed(*arguments: str | Path) -> str:
    """Run a command that has to end well; return its log."""
    result = run(*arguments)
    assert result.returncode == 0, result.stderr
    return result.stderr


@pytest.mark.long
def test_run_add_run_prune_compact(tmp_path: Path) -> None:
    everything = write_corpus(tmp_path / "everything", ("de", "en", "fr"), recordings=8)
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    arguments = ("--corpus", corpus, "--out", out, "--workers", "2", *SMALL)
    for name in ("de", "en"):
        shutil.copytree(everything / name, corpus / name)
    succeed("all", *arguments)
    again = run("all", *arguments, "--unchanged-exit-code", "99")
    assert again.returncode == 99, again.stderr
    assert "dashboard" not in again.stderr
    splits, first, shards = split_of_speaker(manifest_of(out)), features_by_place(out), finished_shards(out)

    shutil.copytree(everything / "fr", corpus / "fr")
    run("scan", *arguments)
    gate = Gate.at(tmp_path / "gate", out / "shards", shards + 5)
    killed = run_until(
        lambda _: finished_shards(out) >= shards + 5, signal.SIGKILL, "extract", *arguments,
        environment=gate.environment,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    unfinished = run("scan", *arguments, "--unchanged-exit-code", "99")
    assert unfinished.returncode == 0, "what an earlier run has not brought to its report is not forgotten"
    assert "scan: unchanged, nothing to do" in unfinished.stderr
    assert first.items() <= features_by_place(out).items()
    log = succeed("all", *arguments, "--unchanged-exit-code", "99")
    assert run("scan", *arguments, "--unchanged-exit-code", "99").returncode == 99
    other_settings = run("scan", *arguments, "--set=models.lstm.units=9", "--unchanged-exit-code", "99")
    assert other_settings.returncode == 0, "there is a model to train"
    already = re.search(r"(\d+) of \d+ shards are finished already", log)
    assert already is not None
    assert int(already[1]) >= shards + 4
    check_contract(out)
    assert splits.items() <= split_of_speaker(manifest_of(out)).items()
    assert "1 append, 0 recordings masked" in run("status", "--out", out).stdout

    gone = sorted((corpus / "en").rglob("1.flac"))
    for path in gone:
        path.unlink()
    kept = run("all", *arguments)
    assert "3 recordings gone" in kept.stderr
    assert "extract: unchanged, nothing to do" in kept.stderr
    succeed("all", "--prune", *arguments)
    check_contract(out)
    assert ledger_of(out)["status"].value_counts().to_dict() == {"ok": 69, "filtered": 3}
    page = (out / "report" / "index.html").read_text(encoding="utf-8")
    assert "3 recordings not counted here: masked, because the files were deleted or changed" in page

    succeed("compact", *arguments)
    check_contract(out)
    one = tmp_path / "one run"
    for stage in ("scan", "extract"):
        run(stage, "--corpus", corpus, "--out", one, "--executor", "serial", *SMALL)
    assert split_of_speaker(manifest_of(one)) == split_of_speaker(manifest_of(out))
    assert store_bytes(out) == store_bytes(one)
    assert (out / "ledger.parquet").read_bytes() == (one / "ledger.parquet").read_bytes()
    log = succeed("all", *arguments)
    assert "extract: unchanged, nothing to do" in log
    assert "data or settings have changed, training starts again" in log


@pytest.mark.long
@pytest.mark.parametrize("stage", ["scan", "extract", "compact"])
def test_a_growth_killed_in_any_stage_continues(tmp_path: Path, stage: str) -> None:
    corpus, out = write_corpus(tmp_path / "corpus", recordings=8), tmp_path / "out"
    arguments = ("--corpus", corpus, "--out", out, "--executor", "serial", *SMALL)
    for name in ("scan", "extract"):
        assert run(name, *arguments).returncode == 0
    write_corpus(tmp_path / "more", ("fr", "it"), recordings=8)
    shutil.copytree(tmp_path / "more", corpus, dirs_exist_ok=True)
    stages = ("scan", "extract", "compact")
    for name in stages[: stages.index(stage)]:
        assert run(name, *arguments).returncode == 0
    begun = {
        "scan": lambda log: "scan: begins" in log,
        "extract": lambda _: finished_shards(out) > 60,
        "compact": lambda _: finished_shards(out / "compacted") > 5,
    }
    written, shards = (out / "compacted", 6) if stage == "compact" else (out, 61)
    gate = Gate.at(tmp_path / "gate", written / "shards", shards)
    killed = run_until(begun[stage], signal.SIGKILL, stage, *arguments, environment=gate.environment)
    assert killed.returncode == -signal.SIGKILL
    for name in stages:
        result = run(name, *arguments)
        assert result.returncode == 0, result.stderr
    check_contract(out)
    expected = tmp_path / "expected"
    for name in ("scan", "extract"):
        run(name, "--corpus", corpus, "--out", expected, "--executor", "serial", *SMALL)
    assert features_by_place(out) == features_by_place(expected)
    assert store_bytes(out) == store_bytes(expected)
