"""What a walk over a corpus folder finds; and names of files and folders."""

from typing import Final, NamedTuple, TypeAlias

from pipeline.corpus.layouts.protocol import Hidden, LeftOut

SYSTEM_NAMES: Final = frozenset({
    "__macosx", "__pycache__", "$recycle.bin", "recycler", "system volume information", "found.000", "thumbs.db",
    "desktop.ini", "lost+found", "@eadir", "@tmp", "#recycle", "#snapshot", "@recycle", "@recently-snapshot",
    "network trash folder", "temporary items",
})  # fmt: skip
"""Names, in lower case, of what Windows, macOS, Linux, Python and network drives put beside the files of people."""


class File(NamedTuple):
    """A file: its path below the root with `/`, its size, and its last change in ns since 1970 (0 if not known).

    A link that leads to no file has `error`, and the size 0.
    """

    path: str
    size_bytes: int
    modified_ns: int
    error: str = ""


class Folder(NamedTuple):
    """A folder right below the root that can be read, or a link to one that is followed."""

    path: str


Entry: TypeAlias = File | Folder | Hidden | LeftOut
"""Paths are as the file system has them, not yet escaped."""


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, by one leading dot, or belongs to a system or a program."""
    return (name.startswith(".") and not name.startswith("..")) or name.lower() in SYSTEM_NAMES


def extension(path: str) -> str:
    """Return the extension of a path in lower case with its dot, empty if it has none."""
    stem, _, found = path[path.rfind("/") + 1 :].rpartition(".")  # a PurePath takes longer than all else for a file
    return f".{found}".lower() if stem and found else ""
