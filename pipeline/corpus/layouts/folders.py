"""The folder layout: LANGUAGE/[SPEAKER/…]file."""

from collections.abc import Iterator
from typing import Final

from upath import UPath

from pipeline.corpus.layouts.files import File, Folder, extension
from pipeline.corpus.layouts.folder_checks import Contents
from pipeline.corpus.layouts.protocol import Hidden, Ignored, LeftOut, Recording
from pipeline.corpus.layouts.walk import walk
from pipeline.errors import escaped
from pipeline.features.audio_source import AudioSource
from pipeline.schema import label_of_folder

EXTENSIONS: Final = frozenset({
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3",
    ".aif", ".aifc", ".aiff", ".au", ".caf", ".nist", ".rf64", ".snd", ".sph", ".voc", ".w64",
})  # fmt: skip


class FolderLayout:
    """One folder per language, in it audio files or one folder per speaker.

    A recording's id is its path below the corpus with `/`. The first folder below the language names the speaker,
    however deep the file lies.
    """

    name = "folders"
    expected = f"LANGUAGE/[SPEAKER/]file with one of {' '.join(sorted(EXTENSIONS))}"

    def claims(self, root: UPath) -> bool:
        """Whether an audio file lies below a folder of `root`."""
        with walk(root) as entries:
            return any(isinstance(entry, File) and _is_recording(entry.path) for entry in entries)

    def recordings(self, root: UPath) -> Iterator[Recording | Ignored | Hidden | LeftOut]:
        """Yield every file below `root`; raises UsageError for folders that cannot be what they would be taken for.

        A name that is not UTF-8 is a recording with an error: Parquet holds UTF-8 alone.
        """
        top, contents = str(root).rstrip("/"), Contents()
        with walk(root) as entries:
            for entry in entries:
                if isinstance(entry, File):
                    yield _file(top, entry, contents)
                elif isinstance(entry, Folder):
                    contents.top.add(entry.path)
                elif isinstance(entry, Hidden):
                    yield Hidden(escaped(entry.path))
                else:
                    yield LeftOut(escaped(entry.path), entry.reason)
        yield from (LeftOut(escaped(folder), "is empty, so it is no language") for folder in contents.empty())
        contents.check(str(root))


def _file(top: str, file: File, contents: Contents) -> Recording | Ignored | LeftOut:
    """Return what a file below `top` is, and add it to the contents."""
    if _is_recording(file.path):
        recording = _recording(top, file)
        contents.add(file.path.partition("/")[0], recording)
        return recording
    if file.error:
        return LeftOut(escaped(file.path), file.error)
    contents.unread(file.path)
    return Ignored(escaped(file.path))


def _recording(top: str, file: File) -> Recording:
    path, error = escaped(file.path, only_surrogates=True), file.error or None
    if path != file.path:
        error = f"its name is not UTF-8 ({path}); rename it"
    language, *below = path.split("/")[:-1]
    return Recording(
        path, AudioSource(f"{top}/{path}"), label_of_folder(language), below[0] if below else None, file.size_bytes,
        file.modified_ns, error,
    )  # fmt: skip


def _is_recording(path: str) -> bool:
    return "/" in path and extension(path) in EXTENSIONS
