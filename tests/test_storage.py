"""Tables: what is written is what is read."""

from pathlib import Path

import pandas as pd
import pytest
from upath import UPath

from pipeline import storage

TABLE = pd.DataFrame({
    "text": pd.array(["ä", None, "<script>"], dtype="string"),
    "count": [2**40, 0, -1],
    "seconds": [0.1, float("nan"), 1e300],
})  # fmt: skip


def test_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = UPath(str(tmp_path / "sub" / "table.parquet"))
    storage.write_parquet(path, TABLE)
    pd.testing.assert_frame_equal(storage.read_parquet(path), TABLE)


def test_index_is_not_written(tmp_path: Path) -> None:
    path = UPath(str(tmp_path / "table.parquet"))
    storage.write_parquet(path, TABLE.set_index(pd.Index([7, 8, 9])))
    assert list(storage.read_parquet(path).columns) == list(TABLE.columns)
    assert list(storage.read_parquet(path).index) == [0, 1, 2]


def test_table_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = UPath(str(tmp_path / "table.parquet"))
    storage.write_parquet(path, TABLE)
    storage.write_parquet(path, TABLE[:1])
    assert len(storage.read_parquet(path)) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["table.parquet"]


def test_table_behind_a_url(memory_url: str) -> None:
    path = UPath(f"{memory_url}/table.parquet")
    storage.write_parquet(path, TABLE)
    pd.testing.assert_frame_equal(storage.read_parquet(path), TABLE)


def test_missing_table_names_its_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.parquet"):
        storage.read_parquet(UPath(str(tmp_path / "none.parquet")))
