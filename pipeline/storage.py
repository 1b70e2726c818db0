"""Reading and writing files at a path or URL: atomic writes, and Parquet tables."""

import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

import pandas as pd
import pyarrow as pa
from pyarrow import parquet
from upath import UPath
from upath.implementations.local import PosixUPath, WindowsUPath

from pipeline.errors import UsageError


def folder_at(uri: str) -> UPath:
    """Return the folder that a path or URL names; raises UsageError where no package is there that opens it."""
    try:
        return UPath(uri).absolute()
    except (ImportError, ValueError) as error:
        raise UsageError(f"{uri} cannot be opened: {error}") from None


def is_local(path: UPath) -> bool:
    """Whether `path` is on a file system of this machine."""
    return isinstance(path, PosixUPath | WindowsUPath)


def write_atomically(path: UPath, *parts: bytes | memoryview) -> None:
    """Write a file of `parts`, one after the other, that is never seen half-written; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_local(path):  # object stores show an object when it is whole
        path.write_bytes(b"".join(parts))
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            file.writelines(parts)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        error.filename = str(path)  # a full disk comes without the place
        raise


@contextmanager
def replacing(path: UPath) -> Iterator[BinaryIO]:
    """Yield a file to write that takes the place of `path` when the block ends without an error.

    For files that are too large to be held in memory. The folder is created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not is_local(path):
        with tempfile.TemporaryFile() as scratch:
            yield scratch
            scratch.seek(0)
            with path.open("wb") as remote:
                shutil.copyfileobj(scratch, remote)
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_parquet(path: UPath) -> pd.DataFrame:
    """Read a table in this thread: pyarrow's threads may outlive Python's exit and abort it (Arrow issue 34314)."""
    file = parquet.ParquetFile(pa.BufferReader(path.read_bytes()), pre_buffer=False)
    table: pd.DataFrame = file.read(use_threads=False).to_pandas(use_threads=False)
    return table


def write_parquet(path: UPath, table: pd.DataFrame) -> None:
    """Write a table atomically, without its index."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    write_atomically(path, buffer.getvalue())
