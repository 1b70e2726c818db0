"""The files below a corpus folder, on this machine or behind a URL, without those of systems and programs."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from upath import UPath

from pipeline.storage import is_local, modified_ns

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


@dataclass
class Walk:
    """All files below the folder `root`, one after the other.

    Links to folders are followed after all real folders, each folder once. While the walk goes on, `hidden` gets the
    paths of files and folders that are hidden or belong to a system, and `left_out` the path of each folder or link
    that is not followed, with the reason.
    """

    root: UPath
    hidden: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[File]:
        yield from _LocalWalk(self).files() if is_local(self.root) else self._remote_files()

    def paths(self) -> Iterator[str]:
        """Yield the paths of the files, the first as soon as one folder is listed."""
        if is_local(self.root):
            yield from (file.path for file in self)
            return
        prefix = self._prefix()
        for folder, _, names in self.root.fs.walk(self.root.path):
            for path in (f"{folder}/{name}".removeprefix(prefix) for name in names):
                if not any(map(is_hidden, path.split("/"))):
                    yield path

    def folders(self) -> list[str]:
        """Return the names of the folders right below the root that are not hidden."""
        names = (path.name for path in self.root.iterdir() if path.is_dir())
        return sorted(name for name in names if not is_hidden(name))

    def _remote_files(self) -> Iterator[File]:
        """Yield all files from one listing of the file system."""
        prefix = self._prefix()
        for name, info in self.root.fs.find(self.root.path, detail=True).items():
            path = name.removeprefix(prefix)
            if any(map(is_hidden, path.split("/"))):
                self.hidden.append(path)
            else:
                yield File(path, int(info["size"]), modified_ns(info))

    def _prefix(self) -> str:
        return str(self.root.fs._strip_protocol(self.root.path).rstrip("/")) + "/"


class _LocalWalk:
    """A walk over folders of this machine."""

    def __init__(self, walk: Walk) -> None:
        self._walk = walk
        self._root = os.path.realpath(str(walk.root))
        self._seen: dict[str, str] = {}  # the path below the root of each folder, by its path without links
        self._links: list[str] = []

    def files(self) -> Iterator[File]:
        yield from self._below("", self._root)
        while self._links:
            links, self._links = sorted(self._links), []
            for path in links:
                yield from self._linked(path)

    def _linked(self, path: str) -> Iterator[File]:
        real = os.path.realpath(f"{self._root}/{path}")
        if real in self._seen:
            self._walk.left_out[path] = f"leads to {self._seen[real] or 'the corpus itself'}, which is listed already"
        elif self._root.startswith(real.rstrip("/") + "/"):
            self._walk.left_out[path] = f"leads to {real}, which holds the corpus"
        else:
            yield from self._below(f"{path}/", real)

    def _below(self, below: str, real: str) -> Iterator[File]:
        """Yield the files of the folder `real`, whose path below the root is `below`, and of the folders in it."""
        if real in self._seen:
            self._walk.left_out[below.rstrip("/")] = f"is {self._seen[real]}, which a link has listed already"
            return
        self._seen[real] = below.rstrip("/")
        folders = []
        try:
            with os.scandir(real) as entries:  # a Path for every file would take longer than all the rest
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if not below:
                raise
            self._walk.left_out[below.rstrip("/")] = f"cannot be read: {error.strerror or error}"
            return
        for entry in found:
            if is_hidden(entry.name):
                self._walk.hidden.append(below + entry.name)
            elif entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            elif (file := self._file(entry, below + entry.name)) is not None:
                yield file
        for name in folders:
            yield from self._below(f"{below}{name}/", f"{real}/{name}")

    def _file(self, entry: "os.DirEntry[str]", path: str) -> File | None:
        """Return a file or a link to one; None for devices, and for links to folders, which are noted."""
        try:
            if entry.is_file():
                found = entry.stat()
                return File(path, found.st_size, found.st_mtime_ns)
            if not entry.is_symlink():
                return None
            if entry.is_dir():
                self._links.append(path)
                return None
            target = Path(entry.path).readlink()
        except OSError as error:
            return File(path, 0, 0, f"cannot be opened: {error.strerror or error}")
        return None if Path(entry.path).exists() else File(path, 0, 0, f"is a link to {target}, which does not exist")


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden, by one leading dot, or belongs to a system or a program."""
    return (name.startswith(".") and not name.startswith("..")) or name.lower() in SYSTEM_NAMES


def extension(path: str) -> str:
    """Return the extension of a path in lower case with its dot, empty if it has none."""
    return PurePosixPath(path).suffix.lower()
