"""Reading an array of a feature store: straight from its shards where they lie in a folder uncompressed.

zarr's event loop costs a few tenths of a millisecond a read, as much as the bytes of a whole chunk.
"""

import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, ShardingCodec, ShardingCodecIndexLocation

from pipeline.errors import PipelineError
from pipeline.schema import is_local

Array = NDArray[Any]

INDEX_ENTRY = np.dtype([("offset", "<u8"), ("nbytes", "<u8")])
CHECKSUM_BYTES = 4
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
        self._folder = folder / name if folder and _is_plain(array) else None
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
        path = self._path(shard)
        try:
            offset, nbytes = self._index(shard)[chunk].tolist()
            if nbytes != self._chunk_bytes:
                raise self._damaged(shard, "it is no shard of this array")
            with path.open("rb", buffering=0) as file:
                taken = os.preadv(file.fileno(), [rows], offset + skipped * rows.shape[1])
        except OSError as error:
            raise self._damaged(shard, error.strerror or str(error)) from error
        if taken != rows.nbytes:
            raise self._damaged(shard, "the file is too short")

    def _read_index(self, shard: int) -> NDArray[np.void]:
        """Return where each chunk of a shard begins in its file, as INDEX_ENTRY; the index is the end of it."""
        count = int(self._array.shards[0]) // self.chunk_size
        length = count * INDEX_ENTRY.itemsize + CHECKSUM_BYTES
        content = bytearray(length)
        with self._path(shard).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            taken = os.preadv(file.fileno(), [content], max(0, size - length))
        if taken != length:
            raise self._damaged(shard, "the file is too short")
        return np.frombuffer(content, INDEX_ENTRY, count)

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


def _is_plain(array: Any) -> bool:
    """Whether the chunks of a sharded array lie in its files as they lie in memory, with the index behind them."""
    match array.metadata.codecs:
        case (ShardingCodec(codecs=(BytesCodec(),), index_location=ShardingCodecIndexLocation.end) as sharding,):
            return len(sharding.index_codecs) > 1 and array.dtype.isnative
    return False
