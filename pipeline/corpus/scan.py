"""The scan: corpus folder → manifest, from file headers alone."""

import logging
from collections.abc import Iterable
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.config import CorpusConfig, PipelineConfig
from pipeline.corpus.database import Database, count, create, fill, rows, stream
from pipeline.corpus.diff import CHANGED, FRESH, GONE, UNREAD, CorpusDiff
from pipeline.corpus.header_task import HEADERS
from pipeline.corpus.headers import KeptHeaders, collect_headers
from pipeline.corpus.listing import Listing, rows_digest
from pipeline.corpus.manifest import NOT_READ, SCHEMA
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.corpus.manifest_table import ROWS
from pipeline.corpus.manifest_writer import numbered, writing
from pipeline.corpus.new_rows import added_rows, choose, describe
from pipeline.corpus.scan_log import log_summary
from pipeline.digests import value_digest
from pipeline.errors import PipelineError, counted
from pipeline.outputs import OutputFolder
from pipeline.runtime.executor import Executor
from pipeline.storage import BACKUP

AGAIN: Final = """
    CREATE TABLE again AS
    SELECT compared.row, recording_id, described.row AS wanted_row, described.error, described.transient, modified_ns
    FROM compared JOIN wanted USING (recording_id) JOIN described ON wanted.row = described.row WHERE unread
"""
"""The rows of the manifest whose headers were read again."""

KNOWN: Final = f"""
    CREATE VIEW known AS
    SELECT manifest.* REPLACE (
        coalesce(compared.uri, manifest.uri) AS uri,
        CASE state WHEN 'gone' THEN '{GONE}' WHEN 'changed' THEN '{CHANGED}' WHEN 'back' THEN '' ELSE masked END
            AS masked,
        coalesce(again.modified_ns, manifest.modified_ns) AS modified_ns,
        coalesce(again.transient, manifest.transient) AS transient,
        -- a store holds the others
        if(manifest.error = '{NOT_READ["error"]}', coalesce(again.error, manifest.error), manifest.error) AS error
    )
    FROM manifest LEFT JOIN compared USING (row) LEFT JOIN again USING (row)
    WHERE again.row IS NULL OR again.error IS NOT NULL
"""
"""The rows of the manifest as they are now, without those that can be read at last."""

FAILED_AGAIN: Final = "DELETE FROM described WHERE row IN (SELECT wanted_row FROM again WHERE error IS NOT NULL)"

CHANGED_ROWS: Final = "SELECT * FROM known SEMI JOIN compared USING (row)"
RELEASED_ROWS: Final = """
    SELECT manifest.* REPLACE (coalesce(compared.uri, manifest.uri) AS uri, {append_index} AS append_index)
    FROM manifest JOIN again USING (row) JOIN compared USING (row) WHERE again.error IS NULL
"""
PLANNED_ROWS: Final = "SELECT planned.*, again.row FROM planned JOIN again USING (recording_id)"
"""Rows of a manifest that are replaced: with another place or mask; with their headers read, before and after they
are planned."""

log = logging.getLogger(__name__)


def scan(
    listing: Listing,
    output: OutputFolder,
    config: PipelineConfig,
    executor: Executor,
    corpus: CorpusConfig,
    wanted: str | None = None,
) -> ManifestFile:
    """Read the headers of all recordings; write the manifest and return it.

    Raises PipelineError for a manifest without the digest `wanted`, that of a store which has lost its manifest.
    """
    db = listing.db
    kept = _kept_headers(output, listing.digest, corpus)
    create(db, "known", ROWS)
    choose(db)
    collect_headers(db, output, executor, corpus, kept)
    describe(db, config)
    order = added_rows(db, config, append_index=0)

    def check(manifest: ManifestFile) -> None:
        if wanted is not None and manifest.digest() != wanted:
            raise PipelineError(
                f"{output.manifest} is damaged or missing, and the recordings give another one than that of the "
                f"store; {BACKUP}, or choose another --out"
            )

    with writing(output.manifest, check) as write:
        for part in numbered(stream(db, order), 0):
            write(part)
    kept.clear()
    log_summary(db)
    return ManifestFile.at(output.manifest)


def update(
    listing: Listing,
    diff: CorpusDiff,
    manifest: ManifestFile,
    output: OutputFolder,
    config: PipelineConfig,
    executor: Executor,
    corpus: CorpusConfig,
) -> ManifestFile:
    """Apply the differences between corpus and `manifest`; write the new manifest and return it.

    Existing rows stay where they are, and new recordings, whose headers are read, follow them. Recordings that are
    gone or have changed are masked: they keep their places in the store and are no longer used. A changed recording
    is not read again, because its row is taken; after compaction, which drops the row, it is a new recording. A
    recording whose header could not be read and now can keeps its row; its sequences are those of an append.
    """
    db = listing.db
    choose(db, f"({FRESH} UNION ALL {UNREAD})")
    kept = _kept_headers(output, rows_digest(db, "wanted"), corpus)
    if count(db, "wanted"):
        collect_headers(db, output, executor, corpus, kept)
    else:
        create(db, "headers", HEADERS)
    describe(db, config)
    for statement in (AGAIN, FAILED_AGAIN, KNOWN):
        db.execute(statement)
    append_index = manifest.last_append + 1
    if rows(db, "SELECT 1 FROM again WHERE error IS NULL LIMIT 1"):
        _release(db, manifest, output, append_index)
    create(db, "planned", SCHEMA)
    fill(db, "planned", numbered(stream(db, added_rows(db, config, append_index)), manifest.sequences))
    masked = diff.number("gone") + diff.number("changed")
    log.info("scan: %s, %d masked, %d in use again", counted(diff.fresh, "new recording"), masked, diff.number("back"))
    log_summary(db)
    _write(
        db, manifest, output, PLANNED_ROWS, stream(db, "SELECT * FROM planned ANTI JOIN again USING (recording_id)")
    )
    kept.clear()
    return ManifestFile.at(output.manifest)


def _kept_headers(output: OutputFolder, digest: str, corpus: CorpusConfig) -> KeptHeaders:
    return KeptHeaders(output.headers, value_digest([digest, corpus.model_dump(mode="json")]))


def _release(db: Database, manifest: ManifestFile, output: OutputFolder, append_index: int) -> None:
    """Make the rows that were read again, of which the store holds nothing, rows of the next append, in the files.

    The store is then one of the manifest without them. Whenever this is interrupted, the files belong together: the
    store is that of all rows of the manifest, or of those of the earlier appends.
    """
    from pipeline.store import feature_store  # noqa: PLC0415 only a scan that reads such rows needs zarr

    _write(db, manifest, output, RELEASED_ROWS.format(append_index=append_index), ())
    digest = ManifestFile.at(output.manifest).digest(append_index - 1)
    feature_store.write_manifest_digest(output, digest)


def _write(
    db: Database, manifest: ManifestFile, output: OutputFolder, replacing: str, added: Iterable[pa.Table]
) -> None:
    """Write `manifest` with rows that have changed, and those of the query `replacing`, and the rows `added`."""
    db.execute(f"CREATE OR REPLACE TABLE replaced AS ({CHANGED_ROWS} UNION ALL BY NAME {replacing}) ORDER BY row")
    with writing(output.manifest) as write:
        for group, table in zip(manifest.groups, manifest.whole_tables(), strict=True):
            stop = group.first_row + len(table)
            found = db.sql(f"SELECT * FROM replaced WHERE row >= {group.first_row} AND row < {stop}").to_arrow_table()
            write(_replaced(table, found, group.first_row) if len(found) else table)
        for part in added:
            write(part)


def _replaced(table: pa.Table, rows: pa.Table, first_row: int) -> pa.Table:
    """Return a table, whose first row is number `first_row`, with `rows`, in rising order, in their places."""
    mask = pc.is_in(pa.array(range(first_row, first_row + len(table)), pa.int64()), rows["row"])
    rows = rows.select(SCHEMA.names).cast(SCHEMA).combine_chunks()
    columns = [
        pc.replace_with_mask(column.combine_chunks(), mask, rows[name].combine_chunks())
        for name, column in zip(table.column_names, table.columns, strict=True)
    ]
    return pa.table(columns, schema=SCHEMA)
