"""Tables that may be larger than memory: DuckDB keeps, sorts and joins them in files."""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import pyarrow as pa

from pipeline.errors import PipelineError
from pipeline.interrupts import ending

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Database: TypeAlias = "DuckDBPyConnection"
"""A connection to tables in files of their own."""

THREADS: Final = 1
"""More of them take more memory, and save no time: most of it is taken by Python, in `stable_hash` and the like."""
PARALLEL_THREADS: Final = 2
"""Threads of queries of which each of them needs little memory."""
MIN_MEMORY_BYTES: Final = 96 * 2**20
MAX_MEMORY_BYTES: Final = 800 * 2**20
MEMORY_BYTES_PER_ROW: Final = 40
"""What DuckDB may take for a table of so many rows. With much less it fails instead of taking longer."""
QUIET: Final = "SET enable_progress_bar = false"
"""DuckDB shows the progress of each query, on this connection alone."""
INTERRUPTED: Final = "Query interrupted"
"""The message of DuckDB's error when a signal has arrived; the exception that Python raised is lost."""
ROWS_AT_ONCE: Final = 2**14
"""Rows of a table that Python holds at a time."""


@contextmanager
def database(folder: Path) -> Iterator[Database]:
    """Yield an empty database whose files lie in `folder`, where there must be none yet.

    Its SQL has the function `stable_hash`, that of this module.
    """
    import duckdb  # noqa: PLC0415 most commands need no database
    from duckdb.func import PythonUDFType  # noqa: PLC0415

    settings: dict[str, Any] = {"temp_directory": str(folder), "threads": THREADS}
    try:
        with duckdb.connect(str(folder / "tables"), config=settings) as db:
            db.execute(QUIET)
            reserve(db, 0)
            db.create_function("stable_hash", _hashes, ["VARCHAR"], "UBIGINT", type=PythonUDFType.ARROW)
            yield db
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise _failure(error) from error
    except RuntimeError as error:
        if str(error) == INTERRUPTED:
            raise ending() from None
        raise


def create(db: Database, table: str, schema: pa.Schema) -> None:
    """Create an empty table, in place of one of the same name."""
    db.register("part", schema.empty_table())
    db.execute(f"CREATE OR REPLACE TABLE {table} AS SELECT * FROM part")
    db.unregister("part")


def fill(db: Database, table: str, parts: Iterable[pa.Table]) -> None:
    """Append `parts` to a table, which exists and has their columns in any order; raises what `parts` raises."""
    rest = iter(parts)
    first = next(rest, None)
    if first is None:
        return
    failed: list[BaseException] = []
    reader = pa.RecordBatchReader.from_batches(first.schema, _batches(chain([first], rest), failed))
    db.register("parts", reader)
    try:
        db.execute(f"INSERT INTO {table} BY NAME SELECT * FROM parts")
    except Exception:
        if failed:
            raise failed[0] from None
        raise
    finally:
        db.unregister("parts")


def _batches(parts: Iterable[pa.Table], failed: list[BaseException]) -> Iterator[pa.RecordBatch]:
    """Yield the rows of tables; `failed` gets the error that ends them, of which DuckDB would tell the text alone."""
    try:
        for part in parts:
            yield from part.to_batches()
    except BaseException as error:
        failed.append(error)
        raise


@contextmanager
def parallel(db: Database) -> Iterator[None]:
    """Let the queries of the block run in PARALLEL_THREADS threads: those that do not sort."""
    db.execute(f"SET threads = {PARALLEL_THREADS}")
    yield
    db.execute(f"SET threads = {THREADS}")


def reserve(db: Database, rows: int) -> None:
    """Let DuckDB take the memory that it needs for a table of so many rows."""
    wanted = min(MAX_MEMORY_BYTES, max(MIN_MEMORY_BYTES, rows * MEMORY_BYTES_PER_ROW))
    db.execute(f"SET memory_limit = '{wanted}B'")


def count(db: Database, table: str) -> int:
    """Return the number of rows of a table."""
    ((found,),) = rows(db, f"SELECT count(*) FROM {table}")
    return int(found)


def rows(db: Database, query: str, *parameters: object) -> list[tuple[Any, ...]]:
    """Return the rows of a query that has few of them."""
    return db.execute(query, parameters).fetchall() or []


def stream(db: Database, query: str) -> Iterator[pa.Table]:
    """Yield the rows of a query in tables of ROWS_AT_ONCE rows and a smaller last one.

    Other statements may be executed meanwhile.
    """
    with db.cursor() as own:
        own.execute(QUIET)
        reader = own.sql(query).to_arrow_reader(ROWS_AT_ONCE)
        while True:
            try:
                part = pa.Table.from_batches([reader.read_next_batch()])
            except StopIteration:
                return
            except OSError as error:
                raise _failure(error) from error
            yield part


def stable_hash(text: str) -> int:
    """Return a 64-bit hash that is the same on every machine and in every version of Python and DuckDB."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def _failure(error: Exception) -> PipelineError:
    reason = str(error).partition("\n")[0]  # general advice follows
    return PipelineError(
        f"a table larger than memory cannot be made: {reason}; see whether there is room in memory and below --out, "
        "and run the same command again"
    )


def _hashes(texts: pa.ChunkedArray) -> pa.Array:
    return pa.array(map(stable_hash, texts.to_pylist()), pa.uint64())
