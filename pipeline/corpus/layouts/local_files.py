"""The files below a folder of this machine, or of a network file system that is mounted on it."""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from pipeline.corpus.layouts.files import Entry, File, Folder, is_hidden
from pipeline.corpus.layouts.protocol import Hidden, LeftOut
from pipeline.corpus.layouts.traversal import Found, Work, traverse

DirEntry: TypeAlias = "os.DirEntry[str]"

PART: Final = 256
"""Entries of a folder that are read at a time."""


def local_files(root: str) -> Generator[Entry, None, None]:
    """Yield all that lies below a folder; raises OSError if that cannot be read.

    Links to folders are followed after all real folders, each folder once. Of several links to one folder, the one
    whose path comes first is followed.
    """
    return _LocalWalk(root).entries()


class _Link(NamedTuple):
    """A link to a folder."""

    path: str


class _LocalWalk:
    """What a walk has to remember so that it lists each folder once: links to folders, and what they lead to."""

    def __init__(self, root: str) -> None:
        self._root = os.path.realpath(root)
        self._tops = {self._root: ""}  # the path below the root of each folder where listing begins, by its real path
        self._left_out = set[str]()
        self._links: list[str] = []

    def entries(self) -> Generator[Entry, None, None]:
        yield from self._below([partial(self._list, "", self._root)])
        while self._links:
            links, self._links = {path: os.path.realpath(f"{self._root}/{path}") for path in sorted(self._links)}, []
            followed = {path: real for path, real in links.items() if self._follow(path, real)}
            yield from self._below([partial(self._list, f"{path}/", real) for path, real in followed.items()])
            for path in links.keys() - followed:
                if (reason := self._refusal(links[path])) is not None:
                    yield LeftOut(path, reason)
                else:  # on the way to the folder, one could not be read
                    self._links.append(path)

    def _below(self, first: Iterable[Work[Entry | _Link]]) -> Iterator[Entry]:
        """Yield what lies in the folders that `first` lists, and remember the links to folders."""
        with closing(traverse(first)) as found:
            for entry in found:
                if isinstance(entry, _Link):
                    self._links.append(entry.path)
                    continue
                if isinstance(entry, LeftOut):
                    self._left_out.add(entry.path)
                yield entry

    def _follow(self, path: str, real: str) -> bool:
        """Whether a link to the folder `real` is to be followed, which it is from now on."""
        follow = self._refusal(real) is None
        if follow:
            self._tops[real] = path
        return follow

    def _refusal(self, real: str) -> str | None:
        """Return why a link to the folder `real` is not followed."""
        if (path := self._listed_as(real)) is not None:
            return f"leads to {path or 'the corpus itself'}, which is listed already"
        if self._root.startswith(real.rstrip("/") + "/"):
            return f"leads to {real}, which holds the corpus"
        return None

    def _listed_as(self, real: str) -> str | None:
        """Return the path below the root with which the folder `real` is listed, None if it is not.

        It is if it lies at any depth in a folder that is, and no folder on the way is hidden or left out.
        """
        top, names = real, list[str]()
        while top not in self._tops:
            top, _, name = top.rpartition("/")
            if not name:
                return None
            names.append(name)
            top = top or "/"
        path = self._tops[top]
        for name in reversed(names):
            if is_hidden(name) or path in self._left_out:
                return None
            path = f"{path}/{name}" if path else name
        return path

    def _list(self, below: str, real: str) -> Found[Entry | _Link]:
        """Return what lies in the folder `real`, whose path below the root is `below`; lead to the folders in it."""
        path = below.rstrip("/")
        if (other := self._tops.get(real, path)) != path:
            return Found([LeftOut(path, f"is {other}, which a link has listed already")])
        return self._part(below, _scan(real), [Folder(path)] if below.count("/") == 1 else [])

    def _part(self, below: str, unread: Iterator[DirEntry], found: Sequence[Entry] = ()) -> Found[Entry | _Link]:
        """Return `found` and the next entries of a folder, lead to the folders among them, and leave the rest.

        A large folder also leads to its files, for other threads: each of them may take a request to a server.
        """
        try:
            part = list(islice(unread, PART))
        except OSError as error:
            if not below:
                raise
            return Found([LeftOut(below.rstrip("/"), f"cannot be read: {error.strerror or error}")])
        hidden, files, folders = list[Hidden](), list[DirEntry](), list[Work[Entry | _Link]]()
        for entry in part:
            if is_hidden(entry.name):
                hidden.append(Hidden(below + entry.name))
            elif _is_real_folder(entry):
                folders.append(partial(self._list, f"{below}{entry.name}/", entry.path))
            else:
                files.append(entry)
        if len(part) < PART:
            return Found([*found, *hidden, *_files(below, files).results], folders)
        return Found([*found, *hidden], [*folders, partial(_files, below, files)], partial(self._part, below, unread))


def _scan(folder: str) -> Iterator[DirEntry]:
    with os.scandir(folder) as entries:  # a Path for every file would take longer than all the rest
        yield from entries


def _is_real_folder(entry: DirEntry) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:  # where the file system does not list what an entry is
        return False


def _files(below: str, entries: Iterable[DirEntry]) -> Found[Entry | _Link]:
    """Return the files and links among the entries of a folder."""
    found = (_file(entry, below + entry.name) for entry in entries)
    return Found([entry for entry in found if entry is not None])


def _file(entry: DirEntry, path: str) -> File | _Link | None:
    """Return a file, or a link to one or to a folder; None for devices."""
    try:
        if entry.is_file():
            found = entry.stat()
            return File(path, found.st_size, found.st_mtime_ns)
        if not entry.is_symlink():
            return None
        if entry.is_dir():
            return _Link(path)
        target = Path(entry.path).readlink()
    except OSError as error:
        return File(path, 0, 0, f"cannot be opened: {error.strerror or error}")
    return None if Path(entry.path).exists() else File(path, 0, 0, f"is a link to {target}, which does not exist")
