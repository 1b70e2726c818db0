"""The manifest as a table of a database."""

from typing import Final

import pyarrow as pa
from upath import UPath

from pipeline.config import PipelineConfig
from pipeline.corpus.database import Database, create, fill, reserve, stream
from pipeline.corpus.manifest import SCHEMA
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.corpus.manifest_writer import numbered, writing
from pipeline.corpus.new_rows import in_plan_order

ROWS: Final = SCHEMA.append(pa.field("row", pa.int64()))
"""Rows of a manifest with their numbers."""

MOVED: Final = pa.schema([("new_row", pa.int64()), ("row", pa.int64()), ("start", pa.int64())])
"""For each recording of a compacted manifest its row there, and its row and first sequence in the earlier one."""

WILD: Final = "*?["
"""DuckDB takes a path with one of these for a pattern."""


def register(db: Database, manifest: ManifestFile, condition: str = "true") -> None:
    """Make the rows of a manifest that meet a condition the table `manifest`, with their numbers as `row`."""
    db.execute("DROP VIEW IF EXISTS manifest")
    path = manifest.local_file()
    if path is not None and not set(path) & set(WILD):
        stored = db.read_parquet(path, file_row_number=True)
        stored.filter(condition).project("* EXCLUDE (file_row_number), file_row_number AS row").create_view("manifest")
        return
    create(db, "held", ROWS)
    fill(db, "held", manifest.numbered_tables())
    db.execute(f"CREATE VIEW manifest AS SELECT * FROM held WHERE {condition}")


def write_compacted(db: Database, path: UPath, manifest: ManifestFile, config: PipelineConfig) -> ManifestFile:
    """Write the manifest that a single run on the recordings that are not masked gives; splits do not change.

    The table `moved`, with the columns MOVED, says where each recording was.
    """
    reserve(db, len(manifest))
    register(db, manifest, "coalesce(masked, '') = ''")
    create(db, "moved", MOVED)
    kept = "SELECT * REPLACE (0 AS append_index, NULL AS masked) RENAME (first_sequence AS start) FROM manifest"
    in_order = in_plan_order(kept, config.seed, parts=any(group.has_parts for group in manifest.groups))
    new_row = 0
    with writing(path) as write:
        for part in numbered(stream(db, in_order), 0):
            write(part)
            rows = pa.array(range(new_row, new_row + len(part)), pa.int64())
            fill(db, "moved", [part.append_column("new_row", rows).select(MOVED.names)])
            new_row += len(part)
    return ManifestFile.at(path)
