"""What a layout of a corpus folder provides."""

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from upath import UPath

from pipeline.features.audio_source import AudioSource


class Recording(NamedTuple):
    """One recording of a corpus: a whole audio file, or a segment or member of one.

    `id` is unique within the corpus and the same wherever the corpus lies. `speaker` is None where it is unknown.
    `size_bytes` is the size of the file that holds the samples, `modified_ns` its last change in ns since 1970, 0 if
    not known. `unusable` is the reason why the recording cannot be used, if it is known before the file is opened.
    """

    id: str
    source: AudioSource
    label: str
    speaker: str | None
    size_bytes: int
    modified_ns: int = 0
    unusable: str | None = None


class Ignored(NamedTuple):
    """A file that is not a recording; `path` is relative to the corpus."""

    path: str


class Hidden(NamedTuple):
    """A file or folder that is hidden or belongs to a system; `path` is relative to the corpus."""

    path: str


class LeftOut(NamedTuple):
    """A folder or link that is left out; `path` is relative to the corpus, `reason` goes on after it."""

    path: str
    reason: str


class CorpusLayout(Protocol):
    """Finds the recordings below a folder."""

    @property
    def name(self) -> str:
        """The name of the layout, for messages."""
        ...

    @property
    def expected(self) -> str:
        """What a folder of this layout looks like, for messages."""
        ...

    def claims(self, root: UPath) -> bool:
        """Whether the folder `root` has this layout; reads as little of it as possible."""
        ...

    def recordings(self, root: UPath) -> Iterator[Recording | Ignored | Hidden | LeftOut]:
        """Yield every file below `root`, in any order; raises UsageError for labels that clash."""
        ...
