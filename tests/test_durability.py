"""What a record lists is on the disk before the record is: the order of writes, syncs and renames."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from pipeline import durable_files
from tests.conftest import make_corpus
from tests.support.appending import run

RECORDS = ("run.json", "complete")


class Journal:
    """What the calls of this process below `root` leave to a power cut.

    `unsynced` are the folders with new names that may be lost. `early` are the files that got their name before their
    content was on the disk, and the records that were written while names might be lost.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._root, self._synced = root, set[Path]()
        self.unsynced: set[Path] = set()
        self.early: list[str] = []
        self.renamed: set[Path] = set()
        for name, note in (("replace", self._rename), ("rename", self._rename), ("mkdir", self._mkdir)):
            monkeypatch.setattr(os, name, self._noted(getattr(os, name), note))
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda descriptor: (self._sync(descriptor), fsync(descriptor)))

    def _noted(self, call: Callable[..., None], note: Callable[..., None]) -> Callable[..., None]:
        def noted(*arguments: Any, **options: Any) -> None:
            call(*arguments, **options)
            places = [Path(argument) for argument in arguments if not isinstance(argument, int)]
            if all(self._root in place.parents for place in places):
                note(*places)

        return noted

    def _mkdir(self, folder: Path) -> None:
        if not folder.name.endswith(durable_files.PARTIAL):  # a folder for temporary files may be lost
            self.unsynced.add(folder.parent)

    def _rename(self, old: Path, new: Path) -> None:
        if self.unsynced and (new.name in RECORDS or new.parent.name == "shards"):
            self.early.append(f"{new} before names in {sorted(self.unsynced)}")
        self.renamed.add(new)
        self.unsynced.add(new.parent)
        if new.is_dir():
            self.unsynced.add(old.parent)
        elif old not in self._synced | self.renamed:
            self.early.append(f"the name {new} before its content")
        self._synced.discard(old)

    def _sync(self, descriptor: int) -> None:
        place = Path(f"/proc/self/fd/{descriptor}").readlink()
        self.unsynced.discard(place)
        self._synced.add(place)


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Journal:
    return Journal(tmp_path / "out", monkeypatch)


@pytest.mark.slow
def test_all_that_a_record_lists_is_on_the_disk_first(tmp_path: Path, journal: Journal) -> None:
    corpus, out = tmp_path / "corpus", tmp_path / "out"
    make_corpus(corpus, {"de": {"anna": 1}, "en": {"dave": 1}}, seconds=0.75)
    run(corpus, out)
    make_corpus(corpus, {"de": {"bert": 1}}, seconds=0.75)
    run(corpus, out)
    there = {path for path in out.rglob("*") if path.is_file()}
    assert there <= journal.renamed
    run(corpus, out, "compact")
    assert journal.early == []
    assert journal.unsynced == set()
    assert len([place for place in journal.renamed if place.parent.name == "shards"]) >= 8


def test_new_folders_of_a_file_are_on_the_disk(tmp_path: Path, journal: Journal) -> None:
    path = UPath(str(tmp_path / "out" / "a" / "b" / "file"))
    (tmp_path / "out").mkdir()
    durable_files.write_atomically(path, b"one")
    with durable_files.replacing(path.parent / "c" / "other") as file:
        file.write(b"two")
    assert (journal.early, journal.unsynced) == ([], set())
    assert journal.renamed == {Path(path), Path(path.parent / "c" / "other")}


def test_files_written_together_get_their_names_after_the_content_of_all_and_the_last_one_last(
    tmp_path: Path, journal: Journal
) -> None:
    places = [UPath(str(tmp_path / "out" / name / "file")) for name in ("a", "b", "shards")]
    durable_files.Unnamed.write({place: [b"x", b"y"] for place in places}).commit()
    assert (journal.early, journal.unsynced) == ([], set())
    assert {place.read_bytes() for place in places} == {b"xy"}


def test_of_files_written_together_none_is_replaced_if_one_cannot_be_written(tmp_path: Path) -> None:
    first = UPath(str(tmp_path / "first"))
    first.write_bytes(b"old")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        durable_files.Unnamed.write({first: [b"new"], UPath(str(tmp_path / "file" / "second")): [b"new"]})
    assert first.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"first", "file"}


def test_folder_whose_file_system_cannot_sync_it_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").is_dir():
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    durable_files.write_atomically(UPath(str(tmp_path / "a" / "file")), b"one")
    assert (tmp_path / "a" / "file").read_bytes() == b"one"
    durable_files.sync_folder(tmp_path / "none")


def test_error_of_a_disk_names_the_file_and_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = UPath(str(tmp_path / "file"))
    path.write_bytes(b"old")

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output error") as error:
        durable_files.write_atomically(path, b"new")
    assert error.value.filename == str(path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"
