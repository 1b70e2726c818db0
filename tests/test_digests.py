"""Digests: the canonical forms, built again here in plain Python, and values that must never change."""

import json
import math
import struct
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pipeline import digests
from pipeline.digests import bytes_digest, list_digest, table_digest, value_digest

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()
)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


@pytest.mark.parametrize(
    ("value", "digest"),
    [
        (None, "dc32537e27486e2c"),
        ({}, "dc7048f8f8747f56"),
        ({"b": [1, 1.0, 0.1, 1e-7, 1e22], "a": {"ä": "\n\udcff", "": True}}, "33f0ff2155d9ee42"),
    ],
)
def test_digest_of_a_value_never_changes(value: object, digest: str) -> None:
    assert value_digest(value) == digest


@given(values)
def test_digest_of_a_value_is_that_of_its_compact_json(value: object) -> None:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    assert value_digest(value) == xxhash.xxh3_128_hexdigest(text.encode("utf-8", "surrogatepass"))[:16]


@given(st.lists(values))
def test_digest_of_a_list_is_that_of_the_value(found: list[object]) -> None:
    assert list_digest(iter(found)) == value_digest(found)


@given(st.dictionaries(st.text(), scalars))
def test_digest_of_a_value_does_not_depend_on_the_order_of_keys(value: dict[str, object]) -> None:
    assert value_digest(value) == value_digest(dict(reversed(value.items())))
    assert value_digest(value) != value_digest([value])


def test_tuples_are_lists_but_integers_are_not_floats() -> None:
    assert value_digest((1, "a")) == value_digest([1, "a"])
    assert value_digest(1) != value_digest(1.0)


@pytest.mark.parametrize("value", [math.nan, math.inf, [{"a": -math.inf}]])
def test_numbers_that_json_lacks_are_refused(value: object) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        value_digest(value)


def test_bytes_are_digested_in_order_however_they_are_cut() -> None:
    assert bytes_digest([b"ab", b"", memoryview(b"c")]) == bytes_digest([b"abc"]) == xxhash.xxh3_128_hexdigest(b"abc")


# tables

TABLE = {
    "text": ["ä", None, "", "a longer one"],
    "count": [2**40, None, 0, -1],
    "seconds": [0.1, math.nan, -1e300, 2.0],
    "flag": [True, False, True, True],
    "nothing": [None, None, None, None],
}


def missing(cell: object) -> bool:
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def canonical(name: str, kind: str, cells: list[Any]) -> bytes:
    """The canonical form of a column, as documented."""
    if all(map(missing, cells)):
        return b""
    form = f"{name}\0{kind}\0{len(cells)}\0".encode() + bytes(map(missing, cells))
    if kind == "text":
        encoded = ["" if missing(cell) else cell for cell in cells]
        encoded = [text.encode() for text in encoded]
        return form + struct.pack(f"<{len(cells)}q", *map(len, encoded)) + b"".join(encoded)
    code = "d" if kind == "float" else "q"
    return form + struct.pack(f"<{len(cells)}{code}", *[0 if missing(cell) else cell for cell in cells])


def test_digest_of_a_table_never_changes() -> None:
    assert table_digest(pa.table(TABLE)) == "e1613166a9af68a8e19fa88186c75a8a"


columns = st.lists(
    st.tuples(
        st.one_of(st.none(), st.text(st.characters(exclude_categories=("Cs",)))),
        st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
        st.one_of(st.none(), st.floats()),
    ),
    max_size=12,
)


@given(columns, st.integers(1, 5))
def test_digest_of_a_table_is_that_of_the_documented_form(rows: list[tuple[Any, ...]], rows_at_once: int) -> None:
    cells = list(zip(*rows, strict=True)) or [(), (), ()]
    table = pa.table({
        "text": pa.array(cells[0], pa.string()), "count": pa.array(cells[1], pa.int64()),
        "seconds": pa.array(cells[2], pa.float64()),
    })  # fmt: skip
    kinds = [("count", "integer", 1), ("seconds", "float", 2), ("text", "text", 0)]
    form = b"".join(canonical(name, kind, list(cells[i])) for name, kind, i in kinds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(digests, "ROWS_AT_ONCE", rows_at_once)
        assert table_digest(table) == xxhash.xxh3_128_hexdigest(form)


def test_digest_of_a_table_depends_on_its_values_alone() -> None:
    frame = pd.DataFrame({
        "text": pd.array(TABLE["text"], "string"), "count": pd.array(TABLE["count"], "Int64"),
        "seconds": TABLE["seconds"], "flag": np.array(TABLE["flag"], np.int8),
    })  # fmt: skip
    expected = table_digest(pa.table(TABLE))
    as_others = frame.astype({"text": "category", "flag": "int32"})[["flag", "seconds", "count", "text"]]
    doubled = pd.concat([frame, frame])
    parts = pa.concat_tables([pa.table(TABLE).slice(0, 1), pa.table(TABLE).slice(1)])
    for same in (frame, frame.astype({"text": object}), as_others, doubled.iloc[4:], doubled[:4]):
        assert table_digest(pa.Table.from_pandas(same, preserve_index=False)) == expected
    assert table_digest(parts) == expected


@pytest.mark.parametrize("row", range(4))
@pytest.mark.parametrize(
    ("name", "other"), [("text", "b"), ("count", 7), ("seconds", 0.5), ("flag", None), ("nothing", 0)]
)
def test_digest_of_a_table_changes_with_every_cell(name: str, other: object, row: int) -> None:
    for value in (other, None):
        cells = [*TABLE[name][:row], value, *TABLE[name][row + 1 :]]
        same = value is None and missing(TABLE[name][row])
        assert (table_digest(pa.table({**TABLE, name: cells})) == table_digest(pa.table(TABLE))) == same


def test_digest_of_a_table_changes_with_its_names_and_the_order_of_rows() -> None:
    table = pa.table(TABLE)
    changed = [table.rename_columns({"text": "texts"}), table.take([1, 0, 2, 3]), table.slice(0, 3)]
    assert len({table_digest(other) for other in (table, *changed)}) == 4


def test_text_is_not_the_same_when_it_is_cut_elsewhere() -> None:
    tables = [pa.table({"a": cells}) for cells in (["ab", "c"], ["a", "bc"], ["abc", ""], ["abc", None])]
    assert len({table_digest(table) for table in tables}) == 4


def test_a_column_without_values_does_not_count() -> None:
    assert table_digest(pa.table({"a": [1], "b": pa.array([None], pa.string())})) == table_digest(pa.table({"a": [1]}))
