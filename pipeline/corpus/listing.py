"""The corpus folder: which files are recordings, and the language and speaker that their place names."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import pandas as pd
import xxhash
from toolz import partition_all
from upath import UPath

from pipeline.errors import UsageError
from pipeline.schema import label_of_folder
from pipeline.storage import folder_at, is_local

EXTENSIONS: Final = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"})
COLUMNS: Final = ("recording_id", "uri", "label", "speaker", "size_bytes")
RECORDINGS_AT_ONCE = 2**16
"""Recordings that are Python objects at a time; as rows of a table they take a fifth of the memory."""


@dataclass(frozen=True, eq=False)
class Listing:
    """The recordings of a corpus in the order of their ids, and the files that are none.

    `recordings` has one row a recording and the columns COLUMNS, which say what its place in the corpus says:
    `recording_id` is the path below the corpus with `/`, `speaker` is NA where no folder names one.
    """

    recordings: pd.DataFrame
    others: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of ids and sizes: equal for the same corpus in another place."""
        state = xxhash.xxh3_128()
        for name, size_bytes in zip(self.recordings["recording_id"], self.recordings["size_bytes"], strict=True):
            state.update(f"{name}\0{size_bytes}\n".encode())
        return state.hexdigest()


def list_recordings(corpus: str) -> Listing:
    """List the corpus LANGUAGE/[SPEAKER/…]/file at `corpus`, a path or a URL.

    Raises UsageError for a folder that is missing, holds no recording, or holds one language only.
    """
    root = folder_at(corpus)
    if not root.is_dir():
        raise UsageError(f"--corpus {corpus}: there is no such folder")
    others: list[str] = []
    found = _recordings(root, others)
    parts = [_table(part) for part in partition_all(RECORDINGS_AT_ONCE, found)]
    recordings = pd.concat(parts or [_table(())]).sort_values("recording_id", ignore_index=True)
    _check(corpus, recordings)
    return Listing(recordings, tuple(sorted(others)))


def _recordings(root: UPath, others: list[str]) -> Iterator[tuple[str, str, str, str | None, int]]:
    """Yield the rows of a listing in any order, and put the files that are no recordings into `others`."""
    top = str(root).rstrip("/")
    for path, size_bytes in _files(root):
        folders = path.split("/")[:-1]
        if not _is_utf8(path):
            others.append(ascii(path))  # a name in another encoding than UTF-8 fits in no table
        elif folders and PurePosixPath(path).suffix.lower() in EXTENSIONS:
            speaker = folders[1] if len(folders) > 1 else None
            yield path, f"{top}/{path}", label_of_folder(folders[0]), speaker, size_bytes
        else:
            others.append(path)


def _table(rows: Sequence[tuple[str, str, str, str | None, int]]) -> pd.DataFrame:
    text = dict.fromkeys(COLUMNS[:-1], "string")
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({**text, "size_bytes": "int64"})


def _files(root: UPath) -> Iterator[tuple[str, int]]:
    """Yield (path below `root`, size) of all files; links to folders are followed, each folder once."""
    if is_local(root):
        yield from _local_files(Path(str(root)), "", set())
        return
    prefix = root.fs._strip_protocol(root.path).rstrip("/") + "/"
    for path, info in root.fs.find(root.path, detail=True).items():
        yield path.removeprefix(prefix), int(info["size"])


def _local_files(folder: Path, below: str, seen: set[Path]) -> Iterator[tuple[str, int]]:
    """Yield (`below` and the path below `folder`, size) of all files; folders in `seen` were met before."""
    real = folder.resolve()
    if real in seen:
        return
    seen.add(real)
    with os.scandir(folder) as entries:  # a Path for every file would take longer than all the rest
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_file():
            yield below + entry.name, entry.stat().st_size
    for entry in found:
        if entry.is_dir():
            yield from _local_files(folder / entry.name, f"{below}{entry.name}/", seen)


def _check(corpus: str, recordings: pd.DataFrame) -> None:
    extensions = " ".join(sorted(EXTENSIONS))
    if recordings.empty:
        raise UsageError(
            f"--corpus {corpus}: no recording in it; expected LANGUAGE/[SPEAKER/]file with one of {extensions}"
        )
    folder_of: dict[str, str] = {}
    for folder in recordings["recording_id"].str.partition("/")[0].unique():
        label = label_of_folder(folder)
        if folder_of.setdefault(label, folder) != folder:
            raise UsageError(
                f"--corpus {corpus}: the folders {folder_of[label]!r} and {folder!r} both give the label "
                f"{label!r}; rename one"
            )
    if len(folder_of) == 1:
        raise UsageError(f"--corpus {corpus}: only one language, {min(folder_of)!r}; a classifier needs at least two")


def _is_utf8(name: str) -> bool:
    """Whether a file name was UTF-8; Python reads the bytes of another encoding as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
