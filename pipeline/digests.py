"""Digests of values and tables: xxh3_128 of a canonical form defined here.

The forms depend on no library's output, so a digest in an output folder means the same for later versions of this
pipeline, of Python and of all libraries.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

VALUE_DIGITS: Final = 16
"""Hexadecimal digits of the digest of a value, which people read in messages and reports."""

ROWS_AT_ONCE: Final = 2**20


def value_digest(value: Any) -> str:
    """Return a digest of JSON-like data: 16 hexadecimal digits.

    The canonical form is compact JSON in UTF-8, with sorted keys and Python's shortest representation of floats.
    Tuples count as lists. Raises ValueError for NaN and infinities, and TypeError for what JSON cannot hold.
    """
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # file names that are not UTF-8 contain surrogates
    return bytes_digest([text.encode("utf-8", "surrogatepass")])[:VALUE_DIGITS]


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
    return bytes_digest(part for name in sorted(table.column_names) for part in _canonical(name, table[name]))


def _canonical(name: str, column: pa.ChunkedArray) -> Iterator[bytes | memoryview]:
    """Yield the canonical form of a column in parts."""
    floating = pa.types.is_floating(column.type)
    if floating:
        column = pc.if_else(pc.is_nan(column), None, column)
    if column.null_count == len(column):
        return
    numeric = floating or pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)
    kind = "float" if floating else "integer" if numeric else "text"
    yield f"{name}\0{kind}\0{len(column)}\0".encode()
    for part in _parts(column):
        yield part.is_null().to_numpy(zero_copy_only=False).astype(np.uint8).data
    if numeric:
        for part in _parts(column):
            wide = part.cast(pa.float64() if floating else pa.int64()).fill_null(0)
            yield wide.to_numpy(zero_copy_only=False).astype("<f8" if floating else "<i8").data
        return
    for part in _parts(column):
        yield np.diff(_text(part)[0]).astype("<i8").data
    for part in _parts(column):
        offsets, text = _text(part)
        yield text[offsets[0] : offsets[-1]]


def _parts(column: pa.ChunkedArray) -> Iterator[pa.Array]:
    """Yield a column in slices, so that memory does not grow with the table."""
    for chunk in column.chunks:
        for start in range(0, len(chunk), ROWS_AT_ONCE):
            yield chunk.slice(start, ROWS_AT_ONCE)


def _text(part: pa.Array) -> tuple[np.ndarray[Any, np.dtype[np.int64]], memoryview]:
    """Return the offsets of text, (row + 1,) int64, and its UTF-8: Arrow's layout of variable-size binary arrays."""
    text = part.cast(pa.large_string()).fill_null("")
    _, offsets, values = text.buffers()
    entries = np.frombuffer(offsets, np.int64)[text.offset : text.offset + len(text) + 1]
    return entries, memoryview(values or b"")
