"""Tables in files: what goes in comes out in its order, disks and memory that are full, and signals."""

import hashlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus import database as module
from pipeline.corpus.database import Database, count, create, database, fill, rows, stable_hash, stream
from pipeline.errors import PipelineError
from tests.support.scans import tables

SCHEMA = pa.schema([("number", pa.int64()), ("name", pa.string())])


def part(*numbers: int) -> pa.Table:
    names = [None if number % 3 == 0 else f"n{number}" for number in numbers]
    return pa.table({"name": pa.array(names, pa.string()), "number": pa.array(numbers, pa.int64())})


@given(st.lists(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5), max_size=5))
def test_rows_come_out_in_the_order_in_which_they_went_in(parts: list[list[int]]) -> None:
    numbers = [number for some in parts for number in some]
    with tables() as db:
        create(db, "found", SCHEMA)
        fill(db, "found", (part(*some) for some in parts))
        assert count(db, "found") == len(numbers)
        assert [value for some in stream(db, "FROM found") for value in some["number"].to_pylist()] == numbers
        assert rows(db, "SELECT number FROM found WHERE name IS NULL") == [(n,) for n in numbers if n % 3 == 0]


@pytest.mark.parametrize("error", [PipelineError("cannot be read"), KeyboardInterrupt()])
def test_what_the_rows_raise_is_raised_as_it_is(error: BaseException) -> None:
    def parts() -> Iterator[pa.Table]:
        yield part(1, 2)
        raise error

    with tables() as db:
        create(db, "found", SCHEMA)
        with pytest.raises(type(error)) as raised:
            fill(db, "found", parts())
        assert raised.value is error
        assert count(db, "found") == 0
        fill(db, "found", [part(3)])
        assert count(db, "found") == 1


def test_other_statements_may_be_executed_while_rows_are_read() -> None:
    with tables() as db:
        create(db, "found", SCHEMA)
        fill(db, "found", [part(*range(40_000))])
        read = 0
        for some in stream(db, "SELECT * FROM found"):
            assert len(some) <= module.ROWS_AT_ONCE
            assert count(db, "found") == 40_000
            read += len(some)
        assert read == 40_000


def test_sql_has_the_hash_of_python() -> None:
    names = ["", "anna", "Jörg Müller", "日本語", "\0x"]
    with tables() as db:
        found = [rows(db, "SELECT stable_hash(?)", name) for name in names]
    assert found == [[(stable_hash(name),)] for name in names]
    digest = hashlib.blake2b("Jörg Müller".encode(), digest_size=8).digest()
    assert stable_hash("Jörg Müller") == int.from_bytes(digest, "little")


def test_too_little_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_MEMORY_BYTES", 2**21)
    with pytest.raises(PipelineError) as error, database(tmp_path) as db:
        for _ in stream(db, "SELECT range, repeat('x', 100) || random() AS text FROM range(300000) ORDER BY text"):
            pass
    message = str(error.value)
    assert message.startswith("a table larger than memory cannot be made: Out of Memory Error: ")
    assert message.endswith("; see whether there is room in memory and below --out, and run the same command again")
    assert "\n" not in message


@pytest.mark.parametrize("streamed", [True, False])
def test_a_signal_ends_a_query(streamed: bool) -> None:
    query = "SELECT random() AS number FROM range(200000000) ORDER BY number"
    with tables_that_end_with(KeyboardInterrupt) as db:
        db.execute("SET memory_limit = '1GB'")
        threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
        if streamed:
            next(stream(db, query))
        else:
            rows(db, f"SELECT max(number) FROM ({query} LIMIT 10)")


@contextmanager
def tables_that_end_with(exception: type[BaseException]) -> Iterator[Database]:
    with pytest.raises(exception), tables() as db:
        yield db
