"""The corpus folder: which files are recordings, and the language and speaker that their place names."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import xxhash
from upath import UPath

from pipeline.audio import EXTENSIONS
from pipeline.errors import UsageError
from pipeline.schema import folder_at, is_local, label_of_folder


@dataclass(frozen=True, slots=True)
class Recording:
    """A file that may hold speech, as its place in the corpus describes it.

    `recording_id` is the path below the corpus with `/`; `speaker` is None where no folder names one.
    """

    recording_id: str
    uri: str
    label: str
    speaker: str | None
    size_bytes: int


@dataclass(frozen=True)
class Listing:
    """The recordings of a corpus in the order of their ids, and the files that are none."""

    recordings: tuple[Recording, ...]
    others: tuple[str, ...] = field(default=())

    @property
    def digest(self) -> str:
        """Digest of ids and sizes: equal for the same corpus in another place."""
        state = xxhash.xxh3_128()
        for recording in self.recordings:
            state.update(f"{recording.recording_id}\0{recording.size_bytes}\n".encode("utf-8", "surrogateescape"))
        return state.hexdigest()


def list_recordings(corpus: str) -> Listing:
    """List the corpus LANGUAGE/[SPEAKER/…]/file at `corpus`, a path or a URL.

    Raises UsageError for a folder that is missing, holds no recording, or holds one language only.
    """
    root = folder_at(corpus)
    if not root.is_dir():
        raise UsageError(f"--corpus {corpus}: there is no such folder")
    recordings, others = [], []
    for path, size_bytes in sorted(_files(root)):
        folders = path.split("/")[:-1]
        if not _is_utf8(path):
            others.append(ascii(path))  # a name in another encoding than UTF-8 fits in no table
        elif folders and UPath(path).suffix.lower() in EXTENSIONS:
            speaker = folders[1] if len(folders) > 1 else None
            recordings.append(Recording(path, str(root / path), label_of_folder(folders[0]), speaker, size_bytes))
        else:
            others.append(path)
    _check(corpus, recordings)
    return Listing(tuple(recordings), tuple(others))


def _files(root: UPath) -> Iterator[tuple[str, int]]:
    """Yield (path below `root`, size) of all files; links to folders are followed, each folder once."""
    if is_local(root):
        top, seen = Path(str(root)), set[Path]()
        for folder, below, names in os.walk(top, followlinks=True):
            real = Path(folder).resolve()
            if real in seen:
                below.clear()
                continue
            seen.add(real)
            below.sort()
            for path in (Path(folder, name) for name in names):
                if path.is_file():
                    yield path.relative_to(top).as_posix(), path.stat().st_size
        return
    prefix = root.fs._strip_protocol(root.path).rstrip("/") + "/"
    for path, info in root.fs.find(root.path, detail=True).items():
        yield path.removeprefix(prefix), int(info["size"])


def _check(corpus: str, recordings: list[Recording]) -> None:
    extensions = " ".join(sorted(EXTENSIONS))
    if not recordings:
        raise UsageError(
            f"--corpus {corpus}: no recording in it; expected LANGUAGE/[SPEAKER/]file with one of {extensions}"
        )
    folder_of: dict[str, str] = {}
    for recording in recordings:
        folder = recording.recording_id.split("/")[0]
        if folder_of.setdefault(recording.label, folder) != folder:
            raise UsageError(
                f"--corpus {corpus}: the folders {folder_of[recording.label]!r} and {folder!r} both give the label "
                f"{recording.label!r}; rename one"
            )
    if len(folder_of) == 1:
        raise UsageError(f"--corpus {corpus}: only one language, {min(folder_of)!r}; a classifier needs at least two")


def _is_utf8(name: str) -> bool:
    """Whether a file name was UTF-8; Python reads the bytes of another encoding as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)
