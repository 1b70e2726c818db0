"""Writing the manifest: rows as they come, in row groups of one size."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa
from pyarrow import parquet
from upath import UPath

from pipeline.corpus.manifest import REPEATED, ROWS_PER_GROUP, SCHEMA
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.durable_files import replacing


@contextmanager
def writing(
    path: UPath, check: Callable[[ManifestFile], None] = lambda _: None
) -> Iterator[Callable[[pa.Table], None]]:
    """Yield a function that appends rows to a new manifest, which replaces `path` when the context ends.

    `check` gets the new manifest before. What it or the context raises keeps the old one.
    """
    with replacing(path) as file:
        rows = _Rows(parquet.ParquetWriter(file, SCHEMA, use_dictionary=REPEATED))
        yield rows.write
        rows.close()
        check(ManifestFile(file, path))


class _Rows:
    """Rows that are written in row groups of ROWS_PER_GROUP, however they come."""

    def __init__(self, writer: parquet.ParquetWriter) -> None:
        self._writer, self._held = writer, SCHEMA.empty_table()

    def write(self, rows: pa.Table) -> None:
        """Write the full row groups, and keep the rest."""
        self._held = pa.concat_tables([self._held, rows.select(SCHEMA.names).cast(SCHEMA)])
        while len(self._held) >= ROWS_PER_GROUP:
            self._writer.write_table(self._held.slice(0, ROWS_PER_GROUP), ROWS_PER_GROUP)
            self._held = self._held.slice(ROWS_PER_GROUP)

    def close(self) -> None:
        """Write the rest."""
        if len(self._held):
            self._writer.write_table(self._held, ROWS_PER_GROUP)
        self._writer.close()


def numbered(parts: Iterable[pa.Table], first_sequence: int) -> Iterator[pa.Table]:
    """Yield rows in the order of the store with the column `first_sequence`: their sequences follow one another."""
    for part in parts:
        sequences = part["sequences"].to_numpy()
        stops = first_sequence + np.cumsum(sequences, dtype=np.int64)
        first_sequence = int(stops[-1]) if len(stops) else first_sequence
        yield part.append_column("first_sequence", pa.array(stops - sequences))


def rewrite(manifest: ManifestFile) -> None:
    """Write the file of a manifest again, with the same rows."""
    with writing(manifest.path) as write:
        for table in manifest.whole_tables():
            write(table)
