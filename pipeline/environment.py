"""What a command needs of its environment: standard streams, a working folder, and names of files in UTF-8."""

import os
import sys
from pathlib import Path

from pipeline.errors import UsageError


def open_standard_streams() -> None:
    """Open the null device in place of each standard stream that is closed.

    Otherwise the next file to be opened would take the number of the stream, and what C libraries print would be
    written into that file.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # the lowest free number is that of the stream
            stream = Path(os.devnull).open(mode, encoding="utf-8")  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def ensure_home() -> None:
    """Let / be the home of a user without one, as in containers: Bokeh, which Dask loads, requires one."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = os.sep


def check() -> None:
    """Raise UsageError if names of files are not read as UTF-8, or if processes cannot start in the working folder."""
    encoding = sys.getfilesystemencoding()
    if encoding != "utf-8":
        raise UsageError(
            f"the locale has names of files in {encoding}, which would change the labels that are made of them; set "
            "the environment variable PYTHONUTF8=1, or LC_ALL=C.UTF-8"
        )
    try:
        folder = Path.cwd()
    except FileNotFoundError:
        raise UsageError("the working folder has been deleted; run the same command in another one") from None
    if not os.access(folder, os.X_OK, effective_ids=True):
        raise UsageError(f"this user may not enter the working folder {folder}; run the same command in another one")
