"""Other people's machines: finished folders that cannot be written, users without a home, commands without streams."""

import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from pipeline.run import main
from tests.support.deadline import DEADLINE_S
from tests.support.other_user import UID, run_as_other_user
from tests.support.whole_system import SMALL, command, in_namespace, run, write_corpus

SERIAL = ("--executor", "serial", *SMALL)
UNSAVED = "cannot be written: Read-only file system; the result is shown here and not saved"


def read_only(out: Path, *commands: list[str]) -> subprocess.CompletedProcess[str]:
    """Run commands while `out` is mounted read-only, up to the first one that fails."""
    lines = " && ".join(shlex.join(line) for line in commands)
    return in_namespace(f'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" && {lines}', out)


@pytest.mark.slow
def test_a_store_on_a_read_only_mount_is_verified(tmp_path: Path) -> None:
    out = tmp_path / "out"
    corpus = write_corpus(tmp_path / "corpus", speakers=3, recordings=1)
    for stage in ("scan", "extract"):
        main([stage, "--corpus", str(corpus), "--out", str(out), *SERIAL], standalone_mode=False)
    before = (out / "run.json").read_bytes()
    result = read_only(out, command("verify", "--out", out, *SERIAL))
    assert result.returncode == 0, result.stderr
    assert f"--out {out} {UNSAVED}" in result.stderr
    assert "all match their checksums; the ledger matches the store" in result.stderr
    assert (out / "run.json").read_bytes() == before


@pytest.mark.slow
@pytest.mark.long
def test_all_that_only_reads_works_on_a_read_only_mount(tmp_path: Path) -> None:
    out = tmp_path / "out"
    corpus = write_corpus(tmp_path / "corpus", recordings=1)
    assert run("--corpus", corpus, "--out", out, *SMALL).returncode == 0
    recording = next(corpus.rglob("*.flac"))
    predict = [part.replace("pipeline.run", "model.predict") for part in command(out / "models" / "ann", recording)]
    stages = [command(stage, "--out", out, *SMALL) for stage in ("verify", "status", "evaluate")]
    result = read_only(out, *stages, predict)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(UNSAVED) == 2
    assert result.stderr.count("unchanged, nothing to do") == 2
    (out / "metrics" / "ann.json").unlink()
    result = read_only(out, stages[-1])
    assert result.returncode == 0, result.stderr
    assert "evaluate ann: frame_accuracy" in result.stderr
    assert not (out / "metrics" / "ann.json").exists()
    result = read_only(out, command("train", "--out", out, *SMALL))
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)
    assert f"--out {out} cannot be written: Read-only file system" in result.stderr


@pytest.fixture
def everybodys() -> Iterator[Path]:
    """A temporary folder for all users; those of pytest are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o1777)
        yield place


@pytest.mark.slow
@pytest.mark.long
def test_a_user_without_a_home_runs_everything(everybodys: Path) -> None:
    corpus, out = write_corpus(everybodys / "corpus", recordings=1), everybodys / "out"
    commands = (
        ("-m", "pipeline.run", "--corpus", corpus, "--out", out, *SMALL),
        ("-m", "model.predict", out / "models" / "lstm", next(corpus.rglob("*.flac"))),
    )
    for arguments in commands:
        result = run_as_other_user(*arguments, temporary=everybodys, HOME="/nonexistent")
        assert result.returncode == 0, result.stderr
        assert "Traceback" not in result.stderr
    assert [path.name for path in everybodys.glob("numba-cache-*")] == [f"numba-cache-{UID}"]


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "</dev/null >/dev/full 2>&1", "2>&1 | true"])
def test_names_with_odd_characters_and_streams_that_take_nothing(tmp_path: Path, streams: str) -> None:
    out, code = tmp_path / "with space" / "üñí %20 100% {x} [y]#q?z" / "out", tmp_path / "code"
    corpus = write_corpus(tmp_path / "corpus #1", recordings=2)
    for path in corpus.rglob("0.flac"):
        path.rename(path.with_name("録音 a+b=3;#1?.flac"))
    line = shlex.join(command("--corpus", corpus, "--out", out, *SMALL))
    subprocess.run(
        f"({line}; echo $? > {shlex.quote(str(code))}) {streams}", shell=True, timeout=DEADLINE_S, check=False
    )
    assert code.read_text() == "0\n"
    assert (pd.read_parquet(out / "ledger.parquet")["status"] == "ok").all()
    assert (out / "report" / "index.html").is_file()
