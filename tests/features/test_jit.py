"""Functions that Numba caches, where nothing but the temporary folder can be written."""

import os
import stat
import tempfile
from pathlib import Path

import pytest

from pipeline.features import jit
from tests.support.other_user import UID, run_as_other_user

DECORATED = """
import os
import pipeline.features.mfcc_kernel
import pipeline.store.statistics
print(os.environ.get("NUMBA_CACHE_DIR"))
"""


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """A temporary folder for all users."""
    place = tmp_path / "tmp"
    place.mkdir()
    place.chmod(0o1777)
    return place


def test_user_without_a_home_gets_a_private_folder(temporary: Path) -> None:
    done = run_as_other_user("-c", DECORATED, temporary=temporary, HOME="/root", NUMBA_CACHE_DIR="/nonexistent")
    assert done.returncode == 0, done.stderr
    folder = temporary / f"numba-cache-{UID}"
    assert done.stdout == f"{folder}\n"
    assert stat.filemode(folder.stat().st_mode) == "drwx------"


def test_folder_that_can_be_written_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(jit.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jit.ensure_cache_folder()
    assert jit.VARIABLE not in os.environ
    monkeypatch.setenv(jit.VARIABLE, str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    jit.ensure_cache_folder()
    assert os.environ[jit.VARIABLE] == str(tmp_path / "mine")


def test_folder_that_others_can_write_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = jit.private_folder()
    assert own == jit.private_folder() == tmp_path / f"numba-cache-{os.getuid()}"
    own.chmod(0o777)
    other = jit.private_folder()
    assert other != own
    assert stat.filemode(other.stat().st_mode) == "drwx------"
    own.rmdir()
    own.symlink_to(other)
    assert jit.private_folder() not in (own, other)
