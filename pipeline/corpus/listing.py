"""The listing: the table of the recordings of a corpus, before any file is opened."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd
import pyarrow as pa
from toolz import partition_all

from pipeline.corpus.layouts.protocol import Ignored, Recording
from pipeline.corpus.layouts.registry import find_layout
from pipeline.corpus.sources import PART_COLUMNS, PART_TYPES
from pipeline.digests import table_digest
from pipeline.errors import UsageError
from pipeline.features.audio_source import AudioSource
from pipeline.storage import folder_at

COLUMN_TYPES: Final = {
    "recording_id": "string", "uri": "string", **PART_TYPES,
    "label": "string", "speaker": "string", "size_bytes": "int64",
}  # fmt: skip
RECORDINGS_AT_ONCE: Final = 2**16
"""Recordings that are Python objects at a time. As rows of a table they take a fifth of the memory."""


@dataclass(frozen=True, eq=False)
class Listing:
    """The recordings of a corpus in the order of their ids, and the paths of the files that are not recordings.

    `recordings` has one row per recording and the columns COLUMN_TYPES. `uri` is the file that holds the samples;
    `member`, `start_s` and `stop_s` are NA for a recording that is a whole file, `speaker` where it is unknown.
    """

    recordings: pd.DataFrame
    ignored: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of ids, sizes and segments; it does not depend on where the corpus lies."""
        columns = self.recordings[["recording_id", *PART_COLUMNS, "size_bytes"]]
        return table_digest(pa.Table.from_pandas(columns, preserve_index=False, nthreads=1))


def list_recordings(corpus: str) -> Listing:
    """List the recordings of the corpus folder at `corpus`, a path or a URL.

    Raises UsageError for a folder that is missing, has no known layout, or holds one language only.
    """
    root = folder_at(corpus)
    if not root.is_dir():
        raise UsageError(f"--corpus {corpus}: there is no such folder")
    ignored: list[str] = []
    found = _without_ignored(find_layout(corpus, root).recordings(root), ignored)
    parts = [_table(part) for part in partition_all(RECORDINGS_AT_ONCE, found)]
    recordings = pd.concat(parts).sort_values("recording_id", ignore_index=True)
    labels = recordings["label"].unique()
    if len(labels) == 1:
        raise UsageError(f"--corpus {corpus}: only one language, {labels[0]!r}; a classifier needs at least two")
    return Listing(recordings, tuple(sorted(ignored)))


def _without_ignored(entries: Iterator[Recording | Ignored], ignored: list[str]) -> Iterator[Recording]:
    """Yield the recordings, and append the paths of the other files to `ignored`."""
    for entry in entries:
        if isinstance(entry, Ignored):
            ignored.append(entry.path)
        else:
            yield entry


def _table(recordings: Sequence[Recording]) -> pd.DataFrame:
    rows = [
        (id_, source.container, source.member, *_span(source), label, speaker, size_bytes)
        for id_, source, label, speaker, size_bytes in recordings
    ]
    return pd.DataFrame(rows, columns=list(COLUMN_TYPES)).astype(COLUMN_TYPES)


def _span(source: AudioSource) -> tuple[float | None, float | None]:
    return (source.start_s, source.stop_s) if source.is_segment else (None, None)
