"""Commands of another user of this machine, who can read everything but write nothing outside of temporary folders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.deadline import DEADLINE_S

ROOT = Path(__file__).parents[2]
UID = 54_321
"""Of no account: it has neither a name nor a home."""

SETPRIV = (
    "setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups",
    # checkouts and temporary folders of tests are often closed to others
    "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search", "--bounding-set=-all,+dac_read_search",
)  # fmt: skip


def run_as_other_user(*arguments: str | Path, temporary: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run Python with `arguments`; skip where this user may not become another one."""
    try:
        probe = subprocess.run([*SETPRIV, "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no setpriv")
    if probe.returncode:
        pytest.skip("only root may run commands of other users")
    environment = {
        "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT), **variables
    }  # fmt: skip
    return subprocess.run(
        [*SETPRIV, sys.executable, *map(str, arguments)],
        cwd="/", env=environment, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
