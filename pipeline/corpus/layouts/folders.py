"""The folder layout: LANGUAGE/[SPEAKER/…]file."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from upath import UPath

from pipeline.corpus.layouts.protocol import Ignored, Recording
from pipeline.errors import UsageError
from pipeline.features.audio_source import AudioSource
from pipeline.schema import label_of_folder
from pipeline.storage import is_local

EXTENSIONS: Final = frozenset({".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"})


class FolderLayout:
    """One folder per language, in it audio files or one folder per speaker.

    A recording's id is its path below the corpus with `/`. The first folder below the language names the speaker,
    however deep the file lies.
    """

    name = "folders"
    expected = f"LANGUAGE/[SPEAKER/]file with one of {' '.join(sorted(EXTENSIONS))}"

    def claims(self, root: UPath) -> bool:
        """Whether an audio file lies below a folder of `root`."""
        paths = (path for path, _ in _local_files(Path(str(root)))) if is_local(root) else _remote_paths(root)
        return any(_is_recording(path) for path in paths)

    def recordings(self, root: UPath) -> Iterator[Recording | Ignored]:
        """Yield every file below `root`; raises UsageError where two language folders give the same label."""
        top = str(root).rstrip("/")
        folder_of: dict[str, str] = {}
        for path, size_bytes in _local_files(Path(str(root))) if is_local(root) else _remote_files(root):
            if not _is_utf8(path):
                yield Ignored(ascii(path))  # Arrow's text is UTF-8
            elif _is_recording(path):
                language, *below = path.split("/")[:-1]
                label = label_of_folder(language)
                if (other := folder_of.setdefault(label, language)) != language:
                    first, second = sorted((other, language))
                    raise UsageError(
                        f"--corpus {root}: the folders {first!r} and {second!r} both give the label {label!r}; "
                        "rename one"
                    )
                source = AudioSource(f"{top}/{path}")
                yield Recording(path, source, label, below[0] if below else None, size_bytes)
            else:
                yield Ignored(path)


def _is_recording(path: str) -> bool:
    return "/" in path and PurePosixPath(path).suffix.lower() in EXTENSIONS


def _is_utf8(name: str) -> bool:
    """Whether a file name is UTF-8; Python reads the bytes of another encoding as lone surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def _remote_files(root: UPath) -> Iterator[tuple[str, int]]:
    """Yield (path below `root`, size in bytes) of all files, from one listing of the file system."""
    prefix = root.fs._strip_protocol(root.path).rstrip("/") + "/"
    for path, info in root.fs.find(root.path, detail=True).items():
        yield path.removeprefix(prefix), int(info["size"])


def _remote_paths(root: UPath) -> Iterator[str]:
    """Yield the paths below `root` of all files, from one listing per folder."""
    prefix = root.fs._strip_protocol(root.path).rstrip("/") + "/"
    for folder, _, names in root.fs.walk(root.path):
        for name in names:
            yield f"{folder}/{name}".removeprefix(prefix)


def _local_files(root: Path) -> Iterator[tuple[str, int]]:
    """Yield (path below `root`, size in bytes) of all files; links to folders are followed, each folder once."""
    yield from _files_below(root, "", set())


def _files_below(folder: Path, below: str, seen: set[Path]) -> Iterator[tuple[str, int]]:
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
            yield from _files_below(folder / entry.name, f"{below}{entry.name}/", seen)
