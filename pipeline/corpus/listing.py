"""The listing: the table of the recordings of a corpus, before any file is opened."""

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import pyarrow as pa
from toolz import partition_all
from upath import UPath

from pipeline.corpus.database import Database, count, create, fill, parallel, reserve, rows
from pipeline.corpus.layouts.files import extension
from pipeline.corpus.layouts.protocol import Hidden, Ignored, LeftOut, Recording
from pipeline.corpus.layouts.registry import find_layout
from pipeline.corpus.layouts.walk import is_folder
from pipeline.digests import value_digest
from pipeline.errors import UsageError
from pipeline.features.audio_source import AudioSource
from pipeline.object_stores import failure, file_errors, find_store
from pipeline.storage import folder_at

LISTED: Final = pa.schema([
    ("recording_id", pa.string()), ("uri", pa.string()), ("member", pa.string()), ("start_s", pa.float64()),
    ("stop_s", pa.float64()), ("label", pa.string()), ("speaker", pa.string()), ("size_bytes", pa.int64()),
    ("modified_ns", pa.int64()), ("unusable", pa.string()),
])  # fmt: skip
OTHERS: Final = pa.schema([(name, pa.string()) for name in ("kind", "path", "extension", "reason")])
FILES_AT_ONCE: Final = 2**16
"""Files that are Python objects at a time."""

DIGEST: Final = """
    SELECT count(*), sum(('0x' || left(sha1(concat(
        recording_id, chr(0), size_bytes, chr(0), member, chr(0),
        round(start_s * 1e9)::BIGINT, chr(0), round(stop_s * 1e9)::BIGINT
    )), 15))::BIGINT)::VARCHAR
    FROM {table}
"""
"""A sum of hashes does not depend on the order of the rows. Of DuckDB's hashes that no version changes, SHA-1 is the
fastest by far; 60 bits of each row are enough to notice a change."""
TWINS: Final = "SELECT count(*) - count(DISTINCT hash(recording_id)) FROM listing"
TWICE: Final = "SELECT min(recording_id) FROM (SELECT recording_id FROM listing GROUP BY ALL HAVING count(*) > 1)"
"""Whether ids are equal, and which: hashes are compared in a fraction of the time and memory that ids take."""


@dataclass(frozen=True)
class Listing:
    """The recordings of a corpus, and what else lies in it: tables of the database `db`.

    `listing` has one row per recording, in any order, with the columns LISTED. `uri` is the file that holds the
    samples; `member`, `start_s` and `stop_s` are NULL for a recording that is a whole file, `speaker` where it is
    unknown, `unusable` where nothing is known against the recording.

    `others` has the paths of the other files and folders: their `kind` is `ignored` for files that are not
    recordings, `hidden` for files and folders of systems and programs, and `left out` for folders and links that are
    not followed, for a `reason`.
    """

    db: Database

    @cached_property
    def digest(self) -> str:
        """Digest of ids, sizes and segments; it does not depend on where the corpus lies."""
        return rows_digest(self.db, "listing")

    def ignored_files(self) -> int:
        """Return the number of files that are not recordings."""
        ((found,),) = rows(self.db, "SELECT count(*) FROM others WHERE kind = 'ignored'")
        return int(found)


def list_recordings(corpus: str, db: Database) -> Listing:
    """List the recordings of the corpus folder at `corpus`, a path or a URL.

    Raises UsageError for a folder that is missing, has no known layout, or holds one language only.
    """
    root = _root(corpus)
    create(db, "listing", LISTED)
    create(db, "others", OTHERS)
    with closing(_entries(corpus, root)) as entries:
        for part in partition_all(FILES_AT_ONCE, entries):
            fill(db, "listing", [_recordings([entry for entry in part if isinstance(entry, Recording)])])
            fill(db, "others", [_others([entry for entry in part if not isinstance(entry, Recording)])])
    return checked(db, corpus)


def checked(db: Database, corpus: str) -> Listing:
    """Return the listing in the tables `listing` and `others`.

    Raises UsageError for two recordings with the same id, or one language only.
    """
    reserve(db, count(db, "listing"))
    with parallel(db):
        ((twins,),) = rows(db, TWINS)
    ((twice,),) = rows(db, TWICE) if twins else [(None,)]
    if twice is not None:
        raise UsageError(f"--corpus {corpus}: two files are called {twice}; rename one")
    labels = rows(db, "SELECT DISTINCT label FROM listing LIMIT 2")
    if len(labels) == 1:
        raise UsageError(f"--corpus {corpus}: only one language, {labels[0][0]!r}; a classifier needs at least two")
    return Listing(db)


def rows_digest(db: Database, table: str) -> str:
    """Return a digest of the rows of a table with the columns LISTED, of their ids, sizes and segments."""
    with parallel(db):
        return value_digest(rows(db, DIGEST.format(table=table)))


def _root(corpus: str) -> UPath:
    """Return the folder of a corpus; raises UsageError where there is none."""
    root = folder_at(corpus)
    try:
        if is_folder(root):
            return root
        missing = "there is no such bucket or folder" if find_store(str(root)) else "there is no such folder"
        what = "is a file, not a folder" if root.exists() else missing
    except file_errors(ValueError, RuntimeError) as error:
        raise failure(f"--corpus {corpus}: cannot be read", str(root), error) from None
    raise UsageError(f"--corpus {corpus}: {what}")


def _entries(corpus: str, root: UPath) -> Generator[Recording | Ignored | Hidden | LeftOut, None, None]:
    """Yield what the layout of a corpus lists; raises PipelineError for what the file system of `root` raises."""
    try:
        yield from find_layout(corpus, root).recordings(root)
    except file_errors() as error:
        raise failure(f"--corpus {corpus}: cannot be read", str(root), error) from None


def _recordings(found: Sequence[Recording]) -> pa.Table:
    listed = [
        (id_, source.container, source.member, *_span(source), label, speaker, *rest)
        for id_, source, label, speaker, *rest in found
    ]
    return _table(listed, LISTED)


def _others(found: Sequence[Ignored | Hidden | LeftOut]) -> pa.Table:
    kinds = {Ignored: "ignored", Hidden: "hidden", LeftOut: "left out"}
    listed = [
        (kinds[type(entry)], entry.path, extension(entry.path), entry.reason if isinstance(entry, LeftOut) else None)
        for entry in found
    ]
    return _table(listed, OTHERS)


def _table(listed: Sequence[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    columns = zip(*listed, strict=True) if listed else [[]] * len(schema)
    return pa.Table.from_arrays([pa.array(*pair) for pair in zip(columns, schema.types, strict=True)], schema=schema)


def _span(source: AudioSource) -> tuple[float | None, float | None]:
    return (source.start_s, source.stop_s) if source.is_segment else (None, None)
