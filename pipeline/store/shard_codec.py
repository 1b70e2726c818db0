"""The bytes of a sharded object, as Zarr's sharding codec defines them, taken directly from memory.

zarr 3.1 writes through an event loop and copies each chunk, which takes a time comparable to that of decoding.
"""

from collections.abc import Iterable

import google_crc32c
import numpy as np
from numcodecs.blosc import BITSHUFFLE, Blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from pipeline.schema import CHUNK_INDEX

# For rounded features: bit shuffling puts the bits that are zero in all of them next to each other.
COMPRESSOR = BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=4)
_blosc = Blosc(cname="lz4", clevel=5, shuffle=BITSHUFFLE)

ABSENT = np.uint64(2**64 - 1)
"""Offset and size of a chunk that is not stored."""


def encode(
    values: NDArray[np.generic], chunk: int, chunks: int, fill: object, *, compressed: bool
) -> list[memoryview]:
    """Return the object of a shard of `chunks` chunks of `chunk` rows, as parts to write one after the other.

    `values` are the rows of the shard, (row, …). The last shard of an array may have fewer than `chunks` × `chunk`:
    its last chunk is filled up with `fill`, and the chunks after that are absent. The format is the default of
    zarr.codecs.ShardingCodec: little-endian bytes, an index at the end, and its CRC32C. Uncompressed chunks are views
    of `values`.
    """
    parts = list(_chunks(np.ascontiguousarray(values), chunk, fill))
    if compressed:
        parts = [np.frombuffer(_blosc.encode(part), np.uint8) for part in parts]
    index = np.full((chunks, len(CHUNK_INDEX)), ABSENT, "<u8")
    sizes = np.array([part.nbytes for part in parts], np.uint64)
    index[: len(parts)] = np.stack([np.cumsum(sizes) - sizes, sizes], axis=1)
    entries = index.reshape(-1).view(np.uint8)
    checksum = np.array([google_crc32c.value(entries.tobytes())], "<u4")
    return [part.reshape(-1).view(np.uint8).data for part in (*parts, entries, checksum)]


def _chunks(values: NDArray[np.generic], chunk: int, fill: object) -> Iterable[NDArray[np.generic]]:
    """Yield the chunks, the last one filled up with `fill`."""
    whole = len(values) // chunk * chunk
    yield from (values[start : start + chunk] for start in range(0, whole, chunk))
    if whole < len(values):
        last = np.full((chunk, *values.shape[1:]), fill, values.dtype)
        last[: len(values) - whole] = values[whole:]
        yield last
