"""A database for sorts, joins and distinct counts over more rows than fit into memory."""

import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from upath import UPath

from pipeline.durable_files import partial_path
from pipeline.storage import is_local

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_MIB: Final = 1024
THREADS: Final = 2


@contextmanager
def database(folder: UPath) -> Iterator["DuckDBPyConnection"]:
    """Yield an empty DuckDB database, which is gone when the block ends.

    It takes up to MEMORY_MIB of memory, and moves the rest to files below `folder`, or in the system's folder for
    temporary files where `folder` is not local or cannot be written. It loads no extensions from the network.
    """
    import duckdb  # noqa: PLC0415 most commands need no database

    writable = is_local(folder) and os.access(str(folder), os.W_OK | os.X_OK)
    place = folder if writable else UPath(tempfile.gettempdir())
    # DuckDB makes this folder when it needs it, and removes it; after a kill, the next command removes it
    spill = partial_path(place / f"database-{uuid.uuid4().hex}")
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{MEMORY_MIB}MiB",
        "threads": THREADS,
        "temp_directory": str(spill),
        "autoinstall_known_extensions": False,
    }
    with duckdb.connect(":memory:", config=config) as connection:
        yield connection
