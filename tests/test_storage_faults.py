"""Disks that fail: a write that returns an error, is cut short, or is the last one of its process, in any stage."""

import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.chaos.forks import Forks
from tests.chaos.history import HISTORY, Place, differences, outcome
from tests.support.whole_system import command

pytestmark = [pytest.mark.slow, pytest.mark.long]

SOURCE = Path(__file__).with_name("support") / "write_faults.c"
KINDS = {"eio": "Input/output error", "enospc": "No space left on device", "half": "Input/output error", "torn": ""}
FIRST_WRITES = 12
"""Faults come at one of so many first writes: each process of the smallest command makes more."""


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that makes a write fail."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    library = tmp_path_factory.mktemp("shim") / "write_faults.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, SOURCE, "-ldl"], check=True)
    return library


@pytest.mark.parametrize("kind", KINDS)
def test_a_write_that_fails_is_one_line_and_the_same_command_ends_with_the_same_bytes(
    tmp_path: Path, shim: Path, kind: str
) -> None:
    place, chance = Place(tmp_path / "place", speakers=4, recordings=1), random.Random(kind)
    faults = 0
    with Forks(tmp_path, trains=True, LD_PRELOAD=str(shim)) as forks:
        for step in HISTORY:
            place.prepare(step)
            arguments = (*place.arguments(step), "--executor", "serial", "--set=models.lstm=null")
            before = place.copy_out(tmp_path / "before")
            whole = forks.run(place.out, *arguments)
            assert whole.code == 0, whole.log
            expected = outcome(place.out)
            place.restore_out(before)
            at = chance.randrange(FIRST_WRITES)
            failed = forks.run(place.out, *arguments, **fault(place, kind, at))
            where = f"{step.name}, write {at}:\n{failed.log}"
            # 0: the command made fewer writes, or one that it can do without failed
            assert failed.code in ((0, -signal.SIGKILL) if kind == "torn" else (0, 1, 2)), where
            assert "Traceback" not in failed.log, where
            assert failed.code == 0 or KINDS[kind] in failed.log, where
            faults += failed.code != 0
            again = forks.run(place.out, *arguments)
            assert (again.code, "Traceback" in again.log) == (0, False), f"{where}\nagain:\n{again.log}"
            assert differences(outcome(place.out), expected) == [], where
    assert faults > len(HISTORY) / 2


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fails_under_workers_costs_no_shard(tmp_path: Path, shim: Path, kind: str) -> None:
    place = Place(tmp_path / "place", speakers=4, recordings=3)
    scan, extract = HISTORY[:2]
    place.prepare(scan)
    assert run(*place.arguments(scan), "--executor", "serial").returncode == 0
    before = place.copy_out(tmp_path / "before")
    assert run(*place.arguments(extract), "--executor", "serial").returncode == 0
    expected = outcome(place.out)
    place.restore_out(before)
    failed = run(*place.arguments(extract), "--workers", "2", LD_PRELOAD=str(shim), **fault(place, kind, 20))
    assert failed.returncode in (0, 1, -signal.SIGKILL), failed.stderr
    assert "Traceback" not in failed.stderr
    again = run(*place.arguments(extract), "--executor", "serial")
    assert again.returncode == 0, again.stderr
    assert differences(outcome(place.out), expected) == [], failed.stderr


def fault(place: Place, kind: str, at: int) -> dict[str, str]:
    """Return the variables by which the shim fails at a write of that number."""
    return {"FAULT_FOLDER": str(place.out), "FAULT_AT": str(at), "FAULT_KIND": kind}


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env={**os.environ, **variables}, check=False
    )
