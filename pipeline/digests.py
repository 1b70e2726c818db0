"""Digests of values and tables: xxh3_128 of a canonical form defined here.

The forms depend on no library's output, so a digest in an output folder means the same for later versions of this
pipeline, of Python and of all libraries.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain, repeat
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

VALUE_DIGITS: Final = 16
"""Hexadecimal digits of the digest of a value, which people read in messages and reports."""

ROWS_AT_ONCE: Final = 2**20

Chunks = Callable[[], Iterable[pa.Array]]
"""A column of a table in pieces of one type; each call gives them from the first."""


def value_digest(value: Any) -> str:
    """Return a digest of JSON-like data: 16 hexadecimal digits.

    The canonical form is compact JSON in UTF-8, with sorted keys and Python's shortest representation of floats.
    Tuples count as lists. Raises ValueError for NaN and infinities, and TypeError for what JSON cannot hold.
    """
    return bytes_digest([_json(value)])[:VALUE_DIGITS]


def list_digest(values: Iterable[Any]) -> str:
    """Return `value_digest` of the list of `values`, which are held one at a time."""
    comma = chain([b""], repeat(b","))
    parts = (part for separator, value in zip(comma, values, strict=False) for part in (separator, _json(value)))
    return bytes_digest(chain([b"["], parts, [b"]"]))[:VALUE_DIGITS]


def _json(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode("utf-8", "surrogatepass")  # file names that are not UTF-8 contain surrogates


def bytes_digest(parts: Iterable[bytes | memoryview]) -> str:
    """Return a digest of the bytes of `parts` in their order: 32 hexadecimal digits."""
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return state.hexdigest()


def table_digest(table: pa.Table) -> str:
    """Return a digest of a table's rows: 32 hexadecimal digits.

    The canonical form has, for each column in the order of the names: its name, its kind (text, integer or float) and
    the number of rows, each followed by a NUL; one byte per row, 1 where there is no value (null or NaN); the values.
    Integers and floats take 8 bytes each, little-endian. Text is the length in bytes of each value as an integer, and
    then all values in UTF-8. A row without a value has 0 or empty text there. Columns without any value are left out,
    so that a new column which does not apply to a table does not change its digest.
    """
    return columns_digest({name: partial(_chunks, table[name]) for name in table.column_names}, len(table))


def columns_digest(columns: Mapping[str, Chunks], rows: int) -> str:
    """Return `table_digest` of a table with `rows` rows that is not in memory; reads each column up to four times."""
    return bytes_digest(part for name in sorted(columns) for part in _canonical(name, columns[name], rows))


def _chunks(column: pa.ChunkedArray) -> list[pa.Array]:
    return column.chunks  # type: ignore[no-any-return]


def _canonical(name: str, column: Chunks, rows: int) -> Iterator[bytes | memoryview]:
    """Yield the canonical form of a column in parts."""
    kind = next((_kind(part.type) for part in _parts(column) if part.null_count < len(part)), None)
    if kind is None:
        return
    yield f"{name}\0{kind}\0{rows}\0".encode()
    for part in _parts(column):
        yield part.is_null().to_numpy(zero_copy_only=False).astype(np.uint8).data
    if kind != "text":
        arrow, numpy = (pa.float64(), "<f8") if kind == "float" else (pa.int64(), "<i8")
        for part in _parts(column):
            yield part.cast(arrow).fill_null(0).to_numpy(zero_copy_only=False).astype(numpy).data
        return
    for part in _parts(column):
        yield np.diff(_text(part)[0]).astype("<i8").data
    for part in _parts(column):
        offsets, text = _text(part)
        yield text[offsets[0] : offsets[-1]]


def _kind(of: pa.DataType) -> str:
    if pa.types.is_floating(of):
        return "float"
    return "integer" if pa.types.is_integer(of) or pa.types.is_boolean(of) else "text"


def _parts(column: Chunks) -> Iterator[pa.Array]:
    """Yield a column in slices, so that memory does not grow with the table; null for NaN."""
    for chunk in column():
        for start in range(0, len(chunk), ROWS_AT_ONCE):
            part = chunk.slice(start, ROWS_AT_ONCE)
            yield pc.if_else(pc.is_nan(part), None, part) if pa.types.is_floating(part.type) else part


def _text(part: pa.Array) -> tuple[np.ndarray[Any, np.dtype[np.int64]], memoryview]:
    """Return the offsets of text, (row + 1,) int64, and its UTF-8: Arrow's layout of variable-size binary arrays."""
    text = part.cast(pa.large_string()).fill_null("")
    _, offsets, values = text.buffers()
    entries = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
    return entries, memoryview(values or b"")
