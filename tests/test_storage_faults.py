"""Disks that fail: a write that returns an error, is cut short, or is the last one of its process, in any stage."""

import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

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


@pytest.mark.parametrize("executor", ["serial", "dask"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_write_that_fails_is_one_line_and_the_same_command_ends_with_the_same_bytes(
    tmp_path: Path, shim: Path, kind: str, executor: str
) -> None:
    place, chance = Place(tmp_path / "place", speakers=4, recordings=1), random.Random(f"{kind} {executor}")
    for step in HISTORY:
        place.prepare(step)
        arguments = (*place.arguments(step), "--executor", executor, "--workers", "2", "--set=models.lstm=null")
        before = place.copy_out(tmp_path / "before")
        whole = run(*arguments)
        assert whole.returncode == 0, whole.stderr
        expected = outcome(place.out)
        place.restore_out(before)
        at = chance.randrange(FIRST_WRITES)
        fault = {"LD_PRELOAD": str(shim), "FAULT_FOLDER": str(place.out), "FAULT_AT": str(at), "FAULT_KIND": kind}
        failed = run(*arguments, **fault)
        where = f"{step.name}, write {at}:\n{failed.stderr}"
        # a worker that is killed or whose disk fails once may be made good
        assert failed.returncode in ((0, 1, -signal.SIGKILL) if kind == "torn" else (0, 1)), where
        assert "Traceback" not in failed.stderr, where
        if failed.returncode == 1:
            assert KINDS[kind] in failed.stderr, where
        again = run(*arguments)
        assert (again.returncode, "Traceback" in again.stderr) == (0, False), f"{where}\nagain:\n{again.stderr}"
        assert differences(outcome(place.out), expected) == [], where


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), capture_output=True, text=True, env={**os.environ, **variables}, check=False
    )
