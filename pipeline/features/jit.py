"""Numba's compiler `njit`, with a folder for compiled code also where no other can be written.

Numba keeps compiled code beside its source, or in the cache folder of the user. In a container, in a service or with a
read-only installation it may be able to write to neither, and raises an error for each function with `cache=True`, of
this package and of librosa.
"""

import atexit
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from pathlib import Path

from numba import njit
from numba.core import config

from pipeline.errors import UsageError
from pipeline.storage import nearest_existing

__all__ = ["njit"]

VARIABLE = "NUMBA_CACHE_DIR"


def ensure_cache_folder() -> None:
    """Let Numba use a private folder below the temporary one if the user's cache folder cannot be written.

    The processes that this one starts inherit it.
    """
    given = os.environ.get(VARIABLE)
    user = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 Path raises without a home
    if not (given and _can_be_written(Path(given))) and not _can_be_written(Path(user)):
        os.environ[VARIABLE] = str(private_folder())
        config.reload_config()


def _can_be_written(folder: Path) -> bool:
    """Whether files can be created in `folder`, which may not exist yet; a relative path depends on the command."""
    return folder.is_absolute() and os.access(nearest_existing(folder), os.W_OK | os.X_OK)


def private_folder() -> Path:
    """Return a folder in which only this user can write: Numba runs the code that it finds there.

    It is the same for all processes of the user, unless somebody else has taken its name. Raises UsageError if there
    is no folder for temporary files.
    """
    try:
        temporary = tempfile.gettempdir()
    except FileNotFoundError:
        raise UsageError(
            "this user can write to no folder for temporary files; set TMPDIR to one that can be written"
        ) from None
    folder = Path(temporary, f"numba-cache-{os.getuid()}")
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o022:
        return folder
    own = tempfile.mkdtemp(prefix=f"{folder.name}-")
    atexit.register(shutil.rmtree, own, ignore_errors=True)
    return Path(own)


ensure_cache_folder()
