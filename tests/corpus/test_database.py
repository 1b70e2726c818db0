"""The database: what exceeds its memory goes to files, of which nothing is left."""

import tempfile
from pathlib import Path

import pytest
from upath import UPath

from pipeline.corpus import database as module
from pipeline.corpus.database import database
from pipeline.durable_files import partial_path
from pipeline.outputs import OutputFolder

MORE_THAN_ITS_MEMORY = (
    "CREATE TABLE numbers AS SELECT i, 'a text of some length ' || i AS text FROM range(1_200_000) r(i)"
)


@pytest.fixture(autouse=True)
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MEMORY_MIB", 40)


def test_what_exceeds_its_memory_is_in_the_folder_until_the_end(tmp_path: Path) -> None:
    with database(UPath(str(tmp_path))) as connection:
        connection.execute(MORE_THAN_ITS_MEMORY)
        (spill,) = tmp_path.iterdir()
        assert any(spill.iterdir())
        assert connection.execute("SELECT count(DISTINCT text) FROM numbers").fetchall() == [(1_200_000,)]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", ["missing", "memory_url"])
def test_folder_that_cannot_be_written_is_replaced_by_that_of_the_system(
    folder: str, memory_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with database(UPath(memory_url if folder == "memory_url" else str(tmp_path / folder))) as connection:
        connection.execute(MORE_THAN_ITS_MEMORY)
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_files_of_a_killed_database_are_removed_by_the_next_command(tmp_path: Path) -> None:
    output = OutputFolder.at(str(tmp_path))
    left = Path(str(partial_path(output.root / "database-0")))
    left.mkdir()
    (left / "duckdb_temp_storage_DEFAULT-0.tmp").write_bytes(b"rows")
    output.clear_partial_files()
    assert not list(tmp_path.iterdir())
