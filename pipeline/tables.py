"""Tables of an output folder: Parquet files that are never seen half-written."""

import io

import pandas as pd
import pyarrow as pa
from pyarrow import parquet
from upath import UPath

from pipeline.errors import UsageError, few
from pipeline.schema import MANIFEST_COLUMNS, Layout, write_atomically


def read(path: UPath) -> pd.DataFrame:
    """Read a table, in this thread: pyarrow's own may still run when Python ends, and then abort (Arrow 34314)."""
    file = parquet.ParquetFile(pa.BufferReader(path.read_bytes()), pre_buffer=False)
    table: pd.DataFrame = file.read(use_threads=False).to_pandas(use_threads=False)
    return table


def read_manifest(layout: Layout) -> pd.DataFrame:
    """Read the manifest of an output folder; raises UsageError for one of an earlier version."""
    table = read(layout.manifest)
    missing = [name for name in MANIFEST_COLUMNS if name not in table]
    if missing:
        raise UsageError(
            f"{layout.manifest} is of another version of the pipeline: it has no column {few(missing)}; take another "
            "--out"
        )
    return table


def write(path: UPath, table: pd.DataFrame) -> None:
    """Write a table without its index."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomically(path, buffer.getvalue())
