"""Tables of an output folder: Parquet files that are never seen half-written."""

import io

import pandas as pd
from upath import UPath

from pipeline.schema import write_atomically


def read(path: UPath) -> pd.DataFrame:
    """Read a table."""
    return pd.read_parquet(io.BytesIO(path.read_bytes()))


def write(path: UPath, table: pd.DataFrame) -> None:
    """Write a table without its index."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomically(path, buffer.getvalue())
