"""Reading an array of a feature store: straight from its shards where they lie in a folder.

zarr's event loop costs a few tenths of a millisecond a read, as much as the bytes of a whole chunk.
"""

import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, ShardingCodec, ShardingCodecIndexLocation

from pipeline.errors import PipelineError
from pipeline.schema import CHUNK_INDEX, is_local

Array = NDArray[Any]

INDEX_ENTRY = np.dtype(list(CHUNK_INDEX))
CHECKSUM_BYTES = 4
# of c-blosc's README_CHUNK_FORMAT; nbytes uncompressed, cbytes compressed with the header
BLOSC_HEADER = np.dtype([("flags", "<u4"), ("nbytes", "<u4"), ("blocksize", "<u4"), ("cbytes", "<u4")])
NO_SHARD = "it is no shard of this array"
INDICES = 1024
"""Shard indexes that are remembered; one is a few hundred bytes."""


class ArrayReader:
    """One array over `sequence`, opened for reading."""

    def __init__(self, group: zarr.Group, folder: Path | None, name: str) -> None:
        array: Any = group[name]
        self._array = array
        self.dtype: np.dtype[Any] = array.dtype
        self.shape: tuple[int, ...] = array.shape
        self.chunk_size = int(array.chunks[0])
        self._chunk_bytes = self.chunk_size * self.dtype.itemsize * math.prod(self.shape[1:])
        self._compressed = _is_compressed(array)
        self._folder = None if self._compressed is None or folder is None else folder / name
        self._index = lru_cache(INDICES)(self._read_index)

    def read(self, start: int, stop: int) -> Array:
        """Return elements [start, stop) of the first dimension."""
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        self.read_into(start, stop, out)
        return out

    def read_into(self, start: int, stop: int, out: Array) -> None:
        """Write elements [start, stop) of the first dimension into the contiguous `out`."""
        if self._folder is None:
            out[...] = self._array[start:stop]
            return
        rows = out.view(np.uint8).reshape(stop - start, -1)
        place = start
        while place < stop:
            end = min(stop, (place // self.chunk_size + 1) * self.chunk_size)
            self._read_chunk(place, rows[place - start : end - start])
            place = end

    def _read_chunk(self, start: int, rows: Any) -> None:
        """Fill `rows`, (row, byte) uint8, with consecutive elements that lie in one chunk."""
        shard, within = divmod(start, int(self._array.shards[0]))
        chunk, skipped = divmod(within, self.chunk_size)
        offset, nbytes = self._index(shard)[chunk].tolist()
        if not self._compressed:
            if nbytes != self._chunk_bytes:
                raise self._damaged(shard, NO_SHARD)
            self._read_bytes(shard, rows, offset + skipped * rows.shape[1])
            return
        if not blosc.MAX_OVERHEAD <= nbytes <= self._chunk_bytes + blosc.MAX_OVERHEAD:
            raise self._damaged(shard, NO_SHARD)
        content = np.empty(nbytes, np.uint8)
        self._read_bytes(shard, content, offset)
        whole = rows if len(rows) == self.chunk_size else np.empty((self.chunk_size, rows.shape[1]), np.uint8)
        self._decompress(shard, content, whole)
        if whole is not rows:
            rows[...] = whole[skipped : skipped + len(rows)]

    def _decompress(self, shard: int, content: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        header = content[: blosc.MAX_OVERHEAD].view(BLOSC_HEADER)[0]
        # the library trusts these two, and would read or write beyond
        if (header["nbytes"], header["cbytes"]) != (out.nbytes, content.nbytes):
            raise self._damaged(shard, NO_SHARD)
        try:
            blosc.decompress(content, out)
        except RuntimeError as error:
            raise self._damaged(shard, str(error)) from error

    def _read_index(self, shard: int) -> NDArray[np.void]:
        """Return where each chunk of a shard begins in its file, as INDEX_ENTRY; the index is the end of it."""
        count = int(self._array.shards[0]) // self.chunk_size
        content = np.empty(count * INDEX_ENTRY.itemsize + CHECKSUM_BYTES, np.uint8)
        self._read_bytes(shard, content, -content.nbytes)
        return np.frombuffer(content, INDEX_ENTRY, count)

    def _read_bytes(self, shard: int, out: Any, offset: int) -> None:
        """Fill `out`, uint8, from byte `offset` of a shard's file on, counted from its end where negative."""
        try:
            with self._path(shard).open("rb", buffering=0) as file:
                place = offset if offset >= 0 else max(0, os.fstat(file.fileno()).st_size + offset)
                taken = os.preadv(file.fileno(), [out], place)
        except OSError as error:
            raise self._damaged(shard, error.strerror or str(error)) from error
        except OverflowError as error:  # no file is that long
            raise self._damaged(shard, NO_SHARD) from error
        if taken != out.nbytes:
            raise self._damaged(shard, "the file is too short")

    def _path(self, shard: int) -> Path:
        key = self._array.metadata.encode_chunk_key((shard,) + (0,) * (len(self.shape) - 1))
        return Path(str(self._folder), key)

    def _damaged(self, shard: int, what: str) -> PipelineError:
        return PipelineError(
            f"{self._path(shard)} (shard {shard}) cannot be read: {what}; run verify to see what else"
        )


def open_arrays(uri: str, root: Any, names: tuple[str, ...]) -> dict[str, ArrayReader]:
    """Open arrays of the store at `uri`, which is `root` as a path."""
    group = zarr.open_group(uri, mode="r")
    folder = Path(str(root)) if is_local(root) else None
    return {name: ArrayReader(group, folder, name) for name in names}


def _is_compressed(array: Any) -> bool | None:
    """Whether the chunks of a sharded array lie in its files as Blosc made them, or as they lie in memory.

    None where they lie in another way, which zarr has to read.
    """
    match array.metadata.codecs:
        case (ShardingCodec(index_location=ShardingCodecIndexLocation.end) as sharding,):
            if len(sharding.index_codecs) > 1 and array.dtype.isnative:
                kinds = [type(codec) for codec in sharding.codecs]
                return {1: False, 2: True}[len(kinds)] if kinds in ([BytesCodec], [BytesCodec, BloscCodec]) else None
    return None
