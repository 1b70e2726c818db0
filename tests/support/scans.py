"""Scans and their tables as data frames, for tests."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pyarrow as pa
from upath import UPath

from pipeline.config import CorpusConfig, PipelineConfig
from pipeline.corpus import diff, listing, new_rows, scan
from pipeline.corpus.database import Database, create, database, fill, rows, stream
from pipeline.corpus.header_task import HEADERS
from pipeline.corpus.manifest import SCHEMA
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.corpus.manifest_table import ROWS, register, write_compacted
from pipeline.corpus.manifest_writer import numbered
from pipeline.corpus.new_rows import added_rows, choose, describe
from pipeline.outputs import OutputFolder
from pipeline.runtime.executor import Executor, SerialExecutor
from tests.conftest import HEADER_NAMES, Probe
from tests.support.manifests import read_table

STRINGS = dict.fromkeys(("recording_id", "uri", "member", "label", "speaker", "unusable"), "string")


@contextmanager
def tables() -> Iterator[Database]:
    """Yield an empty database."""
    with tempfile.TemporaryDirectory() as folder, database(Path(folder)) as db:
        yield db


class Listed(NamedTuple):
    """A listing: its table without row numbers, the paths of other files, and its digest."""

    recordings: pd.DataFrame
    ignored: tuple[str, ...]
    hidden: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]
    digest: str


def listed(corpus: object) -> Listed:
    """List a corpus."""
    with tables() as db:
        found = listing.list_recordings(str(corpus), db)
        table = db.sql("FROM listing ORDER BY recording_id").to_arrow_table()
        others = [
            [path for (path,) in rows(db, "SELECT path FROM others WHERE kind = ? ORDER BY path", kind)]
            for kind in ("ignored", "hidden")
        ]
        left_out = rows(db, "SELECT path, reason FROM others WHERE kind = 'left out' ORDER BY path, reason")
        return Listed(frame(table), *map(tuple, others), tuple(left_out), found.digest)


def frame(table: pa.Table) -> pd.DataFrame:
    """Return an Arrow table as a data frame, text as pandas' strings."""
    found = table.to_pandas()
    return found.astype({name: dtype for name, dtype in STRINGS.items() if name in found})


def probed(probes: list[Probe]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what a listing and headers say of some recordings; headers come as they are ready."""
    table = pd.DataFrame(probes)
    return table[listing.LISTED.names], table[[*HEADER_NAMES]][::-1]


def build_manifest(
    recordings: pd.DataFrame, headers: pd.DataFrame, config: PipelineConfig, known: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return the manifest of the rows of a listing and their headers, which may be in another order."""
    with tables() as db:
        create(db, "listing", listing.LISTED)
        table = pa.Table.from_pandas(recordings, listing.LISTED, preserve_index=False)
        fill(db, "listing", [table])
        choose(db)
        create(db, "headers", HEADERS)
        numbers = dict(rows(db, "SELECT recording_id, row FROM wanted"))
        of_rows = headers.assign(row=recordings["recording_id"].map(numbers))
        fill(db, "headers", [pa.Table.from_pandas(of_rows, HEADERS, preserve_index=False)])
        earlier = ManifestFile.of(known) if known is not None else None
        create(db, "known", ROWS)
        fill(db, "known", earlier.numbered_tables() if earlier else ())
        describe(db, config)
        append_index = earlier.last_append + 1 if earlier else 0
        new = numbered(stream(db, added_rows(db, config, append_index)), earlier.sequences if earlier else 0)
        tables_ = [part.select(SCHEMA.names).cast(SCHEMA) for part in new]
        return pa.concat_tables(
            [*(earlier.table(i) for i in range(len(earlier.groups))), *tables_] if earlier else tables_
        ).to_pandas()


def in_plan_order(manifest: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Return the rows of one append in the order of the store, and number their sequences from 0."""
    with tables() as db:
        register(db, ManifestFile.of(manifest))
        query = new_rows.in_plan_order("SELECT * EXCLUDE (row, first_sequence) FROM manifest", seed, parts=True)
        return pa.concat_tables(
            [part.select(SCHEMA.names).cast(SCHEMA) for part in numbered(stream(db, query), 0)]
        ).to_pandas()


def compacted_manifest(manifest: pd.DataFrame, config: PipelineConfig) -> pd.DataFrame:
    """Return what `write_compacted` writes."""
    with tempfile.TemporaryDirectory() as folder, tables() as db:
        path = UPath(folder) / "new.parquet"
        write_compacted(db, path, ManifestFile.of(manifest), config)
        return read_table(path)


class Compared(NamedTuple):
    """The ids of recordings that differ from the manifest, and whether any does."""

    gone: list[str]
    changed: list[str]
    back: list[str]
    unread: list[str]
    fresh: int
    any: bool


def compared(manifest: pd.DataFrame, corpus: object) -> Compared:
    """Compare a manifest with its corpus."""
    with tables() as db:
        listing.list_recordings(str(corpus), db)
        register(db, ManifestFile.of(manifest))
        found = diff.compare(db)
        unread = rows(db, "SELECT recording_id FROM compared WHERE unread ORDER BY row")
        of_state = (found.names(state, 1000) for state in ("gone", "changed", "back"))
        return Compared(*of_state, [name for (name,) in unread], found.fresh, bool(found))


def scanned(
    corpus: object, output: OutputFolder, config: PipelineConfig, executor: Executor | None = None
) -> pd.DataFrame:
    """Scan a corpus, and return the manifest."""
    with tables() as db:
        scan.scan(
            listing.list_recordings(str(corpus), db), output, config, executor or SerialExecutor(), CorpusConfig()
        )
    return read_table(output.manifest)
