"""The walk over a corpus folder: each folder once, in any order, with little of it in memory, in threads that end."""

import errno
import functools
import os
import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import count
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from upath import UPath

from pipeline.corpus import listing
from pipeline.corpus.layouts import local_files, traversal
from pipeline.corpus.layouts.files import Entry, File, Folder, extension, is_hidden
from pipeline.corpus.layouts.folders import FolderLayout
from pipeline.corpus.layouts.protocol import Hidden, LeftOut
from pipeline.corpus.layouts.traversal import AHEAD, THREADS, Found, traverse
from pipeline.corpus.layouts.walk import walk
from tests.support.scans import tables

PART = 4
"""Entries of a folder that are read at a time in these tests."""


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "PART", PART)


def threads() -> list[threading.Thread]:
    """Return the threads of traversals that are running."""
    return [thread for thread in threading.enumerate() if thread.name == "traversal"]


class FakeEntry(NamedTuple):
    """What `os.scandir` yields: a file, or a folder if there is no dot in its name."""

    name: str
    path: str

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return "." not in self.name

    def is_file(self) -> bool:
        return not self.is_dir()

    def stat(self) -> os.stat_result:
        return Path("/").stat()


class FakeFolders:
    """What lies below `root` in place of what does: `names` are those at a depth. `read` counts what was listed."""

    def __init__(self, root: Path, names: Callable[[int], Iterator[str]], patch: pytest.MonkeyPatch) -> None:
        self._root, self._names = os.path.realpath(root), names
        self._scandir = os.scandir
        self.read = 0
        patch.setattr(os, "scandir", self._scan)

    def _scan(self, path: str) -> AbstractContextManager[Iterator[FakeEntry | os.DirEntry[str]]]:
        return nullcontext(self._entries(path)) if str(path).startswith(self._root) else self._scandir(path)

    def _entries(self, path: str) -> Iterator[FakeEntry]:
        for name in self._names(path.removeprefix(self._root).count("/")):
            self.read += 1
            yield FakeEntry(name, f"{path}/{name}")


def of_files(depth: int, name: str = "{}.wav") -> Iterator[str]:
    """Two languages of files without an end."""
    return map(name.format, count()) if depth else iter(("en", "it"))


def of_sessions(depth: int) -> Iterator[str]:
    """Two languages of speakers without an end, of sessions without an end, of 2 files each."""
    return (iter(("en", "it")), map(str, count()), map(str, count()), iter(("1.wav", "2.wav")))[depth]


@pytest.mark.parametrize(
    ("names", "read_per_file"),
    [(of_files, 1.0), (functools.partial(of_files, name="._{}.wav"), 1.0), (of_sessions, 1.5)],
)
def test_of_a_corpus_without_an_end_only_the_next_entries_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Callable[[int], Iterator[str]], read_per_file: float
) -> None:
    folders = FakeFolders(tmp_path, names, monkeypatch)
    with walk(UPath(tmp_path)) as entries:
        for number, _ in enumerate(entries):
            assert folders.read <= read_per_file * number + 4 * PART * AHEAD * THREADS
            if number == 10_000:
                break
    assert not threads()


@pytest.mark.parametrize("names", [of_files, of_sessions])
def test_first_recording_ends_the_choice_of_a_layout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: Callable[[int], Iterator[str]]
) -> None:
    folders = FakeFolders(tmp_path, names, monkeypatch)
    assert FolderLayout().claims(UPath(tmp_path))
    assert folders.read <= 4 * PART * AHEAD * THREADS
    assert not threads()


def test_interrupted_listing_leaves_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FakeFolders(tmp_path, of_files, monkeypatch)
    monkeypatch.setattr(listing, "FILES_AT_ONCE", 2)
    monkeypatch.setattr(listing, "fill", mock.Mock(side_effect=KeyboardInterrupt))
    with tables() as db, pytest.raises(KeyboardInterrupt) as held:  # which keeps all frames
        listing.list_recordings(str(tmp_path), db)
    assert held.tb is not None
    assert not threads()


def test_work_that_does_not_end_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traversal, "PATIENCE_S", 0.0)
    answer = threading.Event()

    def hang() -> Found[int]:
        answer.wait()
        return Found([1])

    results = traverse([hang, lambda: Found([0])])
    assert next(results) == 0
    results.close()
    assert len(threads()) == 1
    answer.set()
    for thread in threads():
        thread.join()


def test_error_of_work_is_raised_where_results_are_asked_for() -> None:
    def work(left: int) -> Found[int]:
        return Found([left], [functools.partial(work, left - 1)]) if left else Found([1 // left])

    with pytest.raises(ZeroDivisionError):
        list(traverse([functools.partial(work, 100)]))
    assert not threads()


def test_all_work_is_done_once() -> None:
    def work(number: int) -> Found[int]:
        return Found([number], [functools.partial(work, 2 * number + i) for i in (0, 1) if number < 500])

    assert sorted(traverse([functools.partial(work, 1)])) == list(range(1, 1000))


@given(st.text("ab./", max_size=8))
def test_extension_is_that_of_pathlib(path: str) -> None:
    if not path.endswith(("/", ".")):  # pathlib drops the slash, and the versions of Python differ on a dot
        assert extension(path.upper()) == Path(path).suffix


class Simple:
    """What a walk is to find, from one folder after the other: paths below the root."""

    def __init__(self, root: str, unreadable: frozenset[str]) -> None:
        self._root, self._unreadable = root, unreadable
        self._seen: dict[str, str] = {}
        self._links: list[str] = []
        self.left_out: dict[str, str] = {}
        self.hidden: set[str] = set()
        self.files: set[str] = set()
        self._below("", root)
        while self._links:
            links, self._links = sorted(self._links), []
            for path in links:
                self._linked(path)
        self.folders = {path for path in self._seen.values() if path and "/" not in path} - self.left_out.keys()

    def _linked(self, path: str) -> None:
        real = os.path.realpath(f"{self._root}/{path}")
        if real in self._seen:
            self.left_out[path] = f"leads to {self._seen[real] or 'the corpus itself'}, which is listed already"
        elif self._root.startswith(f"{real}/"):
            self.left_out[path] = f"leads to {real}, which holds the corpus"
        else:
            self._below(f"{path}/", real)

    def _below(self, below: str, real: str) -> None:
        path = below.rstrip("/")
        if real in self._seen:
            self.left_out[path] = f"is {self._seen[real]}, which a link has listed already"
            return
        self._seen[real] = path
        if real in self._unreadable:
            self.left_out[path] = "cannot be read: Permission denied"
            return
        for place in sorted(Path(real).iterdir()):
            if is_hidden(place.name):
                self.hidden.add(below + place.name)
            elif not place.is_dir():
                self.files.add(below + place.name)
            elif place.is_symlink():
                self._links.append(below + place.name)
            else:
                self._below(f"{below}{place.name}/", str(place))


BELOW = ("", "/a", "/b", "/.h", "/a/a", "/a/b", "/.h/a", "/.h/a/b")
FOLDERS = [top + below for top in ("corpus", "lake") for below in BELOW]
LINKS = st.dictionaries(
    st.tuples(st.sampled_from(FOLDERS), st.sampled_from(["0", "k", "z"])),
    st.sampled_from([*FOLDERS, ".", "none", "lake/1.wav"]), max_size=6,
)  # fmt: skip


@example(set(), {("corpus/a", "k"): "lake", ("corpus/b", "0"): "lake", ("corpus", "z"): "lake/a"}, set(), 0)
@example(set(), {("corpus", "0"): "lake/a", ("corpus", "k"): "lake"}, set(), 0)
@example(set(), {("corpus", "0"): "corpus/.h/a", ("corpus", "k"): "corpus/.h", ("corpus", "z"): "."}, set(), 0)
@example(set(), {("corpus", "0"): "corpus/a/b", ("lake", "k"): "corpus", ("corpus", "z"): "lake"}, {"corpus/a"}, 0)
@example(set(), {("corpus", "0"): "lake", ("corpus", "k"): "lake/a/b"}, {"lake/a"}, 0)
@given(
    st.sets(st.sampled_from(FOLDERS)), LINKS, st.sets(st.sampled_from(FOLDERS[1:]), max_size=2), st.integers(0, 2**32)
)
def test_each_folder_is_listed_once_in_whatever_order_entries_come(
    folders: set[str], links: dict[tuple[str, str], str], unreadable: set[str], seed: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        base = os.path.realpath(name)
        for folder in {"corpus", *folders, *(folder for folder, _ in links), *(set(FOLDERS) & set(links.values()))}:
            Path(base, folder).mkdir(parents=True, exist_ok=True)
            Path(base, folder, "1.wav").touch()
        for (folder, link), target in links.items():
            Path(base, folder, link).symlink_to(f"{base}/{target}")
        denied = frozenset(f"{base}/{folder}" for folder in unreadable)
        expected = Simple(f"{base}/corpus", denied)
        scandir = functools.partial(shuffled, os.scandir, denied, random.Random(seed))
        with mock.patch.object(os, "scandir", scandir), walk(UPath(f"{base}/corpus")) as entries:
            found = list(entries)
    assert dict(of(found, LeftOut)) == expected.left_out
    assert {path for (path,) in of(found, Hidden)} == expected.hidden
    assert {file.path for file in of(found, File)} == expected.files
    assert len(found) == len({(type(entry), entry.path) for entry in found})
    assert {path for (path,) in of(found, Folder)} == expected.folders


@contextmanager
def shuffled(
    scandir: Callable[[str], "os._ScandirIterator[str]"], denied: frozenset[str], order: random.Random, path: str
) -> Iterator[Iterator["os.DirEntry[str]"]]:
    """Scan a folder in any order; some are denied (root, as whom tests may run, never is)."""
    if path in denied:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    with scandir(path) as entries:
        yield iter(sorted(entries, key=lambda _: order.random()))


def of(entries: list[Entry], kind: type) -> list[Entry]:
    return [entry for entry in entries if type(entry) is kind]
