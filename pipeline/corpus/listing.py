"""The listing: the table of the recordings of a corpus, before any file is opened."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pandas as pd
import pyarrow as pa
from toolz import partition_all
from upath import UPath

from pipeline.corpus.layouts.protocol import Hidden, Ignored, LeftOut, Recording
from pipeline.corpus.layouts.registry import find_layout
from pipeline.corpus.sources import PART_COLUMNS, PART_TYPES
from pipeline.digests import table_digest
from pipeline.errors import UsageError
from pipeline.features.audio_source import AudioSource
from pipeline.object_stores import failure, file_errors, find_store
from pipeline.storage import folder_at

COLUMN_TYPES: Final = {
    "recording_id": "string", "uri": "string", **PART_TYPES,
    "label": "string", "speaker": "string", "size_bytes": "int64", "modified_ns": "int64", "unusable": "string",
}  # fmt: skip
RECORDINGS_AT_ONCE: Final = 2**16
"""Recordings that are Python objects at a time. As rows of a table they take a fifth of the memory."""


@dataclass(frozen=True, eq=False)
class Listing:
    """The recordings of a corpus in the order of their ids, and what else lies in it.

    `recordings` has one row per recording and the columns COLUMN_TYPES. `uri` is the file that holds the samples;
    `member`, `start_s` and `stop_s` are NA for a recording that is a whole file, `speaker` where it is unknown,
    `unusable` where nothing is known against the recording. `ignored` are the paths of files that are not recordings,
    `hidden` those of files and folders of systems and programs, `left_out` folders and links that are not followed.
    """

    recordings: pd.DataFrame
    ignored: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def digest(self) -> str:
        """Digest of ids, sizes and segments; it does not depend on where the corpus lies."""
        columns = self.recordings[["recording_id", *PART_COLUMNS, "size_bytes"]]
        return table_digest(pa.Table.from_pandas(columns, preserve_index=False, nthreads=1))


def list_recordings(corpus: str) -> Listing:
    """List the recordings of the corpus folder at `corpus`, a path or a URL.

    Raises UsageError for a folder that is missing, has no known layout, or holds one language only.
    """
    root = _root(corpus)
    others: list[Ignored | Hidden | LeftOut] = []
    found = _only_recordings(find_layout(corpus, root).recordings(root), others)
    parts = [_table(part) for part in partition_all(RECORDINGS_AT_ONCE, found)]
    recordings = pd.concat(parts).sort_values("recording_id", ignore_index=True)
    twice = recordings["recording_id"][recordings["recording_id"].duplicated()]
    if len(twice):
        raise UsageError(f"--corpus {corpus}: two files are called {twice.iloc[0]}; rename one")
    labels = recordings["label"].unique()
    if len(labels) == 1:
        raise UsageError(f"--corpus {corpus}: only one language, {labels[0]!r}; a classifier needs at least two")
    return Listing(
        recordings,
        tuple(sorted(other.path for other in others if isinstance(other, Ignored))),
        tuple(sorted(other.path for other in others if isinstance(other, Hidden))),
        tuple(sorted(other for other in others if isinstance(other, LeftOut))),
    )


def _root(corpus: str) -> UPath:
    """Return the folder of a corpus; raises UsageError where there is none."""
    root = folder_at(corpus)
    try:
        if root.is_dir():
            next(iter(root.iterdir()), None)
            return root
        missing = "there is no such bucket or folder" if find_store(str(root)) else "there is no such folder"
        what = "is a file, not a folder" if root.exists() else missing
    except file_errors(ValueError, RuntimeError) as error:
        raise failure(f"--corpus {corpus}: cannot be read", str(root), error) from None
    raise UsageError(f"--corpus {corpus}: {what}")


def _only_recordings(
    entries: Iterator[Recording | Ignored | Hidden | LeftOut], others: list[Ignored | Hidden | LeftOut]
) -> Iterator[Recording]:
    """Yield the recordings, and append the other entries to `others`."""
    for entry in entries:
        if isinstance(entry, Recording):
            yield entry
        else:
            others.append(entry)


def _table(recordings: Sequence[Recording]) -> pd.DataFrame:
    rows = [
        (id_, source.container, source.member, *_span(source), label, speaker, *rest)
        for id_, source, label, speaker, *rest in recordings
    ]
    return pd.DataFrame(rows, columns=list(COLUMN_TYPES)).astype(COLUMN_TYPES)


def _span(source: AudioSource) -> tuple[float | None, float | None]:
    return (source.start_s, source.stop_s) if source.is_segment else (None, None)
