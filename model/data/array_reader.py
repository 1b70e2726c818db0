"""Reading one array of a feature store, directly from the files of its shards where that is possible.

zarr's event loop costs a few tenths of a millisecond per read, as much as reading the bytes of a whole chunk.
"""

import ctypes
import math
import os
from collections.abc import Callable, Iterator
from enum import Enum, auto
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, ShardingCodec, ShardingCodecIndexLocation

from pipeline.errors import PipelineError
from pipeline.object_stores import cause_of, file_errors
from pipeline.schema import CHUNK_INDEX
from pipeline.storage import is_local

Array = NDArray[Any]

INDEX_ENTRY = np.dtype(list(CHUNK_INDEX))
CHECKSUM_BYTES = 4
# c-blosc 1 README_CHUNK_FORMAT.rst; nbytes is the uncompressed size, cbytes the compressed size with this header
BLOSC_HEADER = np.dtype([("flags", "<u4"), ("nbytes", "<u4"), ("blocksize", "<u4"), ("cbytes", "<u4")])
NO_SHARD = "it is no shard of this array"
MAX_OFFSET = 2**63 - 1
"""The largest off_t: no file is longer, and ctypes would wrap a larger offset around."""
CACHED_INDEXES = 1024
"""Number of shard indexes kept in memory; each takes a few hundred bytes."""

IOVEC = np.dtype([("base", np.uintp), ("length", np.uintp)])
"""struct iovec of <sys/uio.h>."""
MAX_VECTORS = os.sysconf("SC_IOV_MAX")

_libc = ctypes.CDLL(None, use_errno=True)
_libc.preadv.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.c_int64]
_libc.preadv.restype = ctypes.c_ssize_t


class Stored(Enum):
    """How the chunks of an array lie in the files of its shards."""

    RAW = auto()
    """As in memory."""
    BLOSC = auto()
    """As one Blosc buffer each."""
    OTHER = auto()
    """In any other way, or in no local file: zarr has to read them."""


class ArrayReader:
    """One array over `sequence`, opened for reading from `folder`, the store's local folder, if there is one."""

    def __init__(self, group: zarr.Group, folder: Path | None, name: str) -> None:
        array: Any = group[name]
        self._array = array
        self.dtype: np.dtype[Any] = array.dtype
        self.shape: tuple[int, ...] = array.shape
        self.chunk_size = int(array.chunks[0])
        self._shard_size = int(array.shards[0]) if array.shards else 0
        self._row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        self._chunk_bytes = self.chunk_size * self._row_bytes
        self._stored = Stored.OTHER if folder is None else _how_stored(array)
        if self._stored is Stored.BLOSC:
            self._min_bytes, self._max_bytes = blosc.MAX_OVERHEAD, self._chunk_bytes + blosc.MAX_OVERHEAD
        else:
            self._min_bytes = self._max_bytes = self._chunk_bytes
        self._folder = None if folder is None else folder / name
        self._index = lru_cache(CACHED_INDEXES)(self._read_index)
        self._path = lru_cache(CACHED_INDEXES)(self._make_path)

    def read(self, start: int, stop: int) -> Array:
        """Return elements [start, stop) of the first dimension; raises PipelineError for a shard that is damaged."""
        if self._stored is Stored.OTHER:
            try:
                return np.asarray(self._array[start:stop])
            except file_errors() as error:
                raise PipelineError(f"{self._array.store_path} cannot be read: {cause_of(error)}") from error
        out = np.empty((stop - start, *self.shape[1:]), self.dtype)
        rows = out.view(np.uint8).reshape(stop - start, self._row_bytes)
        for begin, end in self._cut(start, stop):
            self._read_chunk(begin, rows[begin - start : end - start])
        return out

    def scatter(self, start: int, stop: int, out: Array, places: NDArray[np.int64]) -> None:
        """Write element `start + i` to `out[places[i]]`, or nowhere if that place is negative.

        Raw chunks are read from the file directly into place, so that shuffling costs no copy. Raises IndexError for a
        place beyond `out`, ValueError unless `out` is contiguous and has elements like the array's, and PipelineError
        for a shard that is damaged.
        """
        if out.dtype != self.dtype or out.shape[1:] != self.shape[1:] or not out.flags.c_contiguous:
            raise ValueError(f"{out.dtype} {out.shape} takes no elements of {self.dtype} {self.shape}")
        if self._stored is not Stored.RAW:
            wanted = places >= 0
            out[places[wanted]] = self.read(start, stop)[wanted]
            return
        if places.max(initial=-1) >= len(out):
            raise IndexError(f"place {places.max()} is beyond the {len(out)} places of the output")
        nowhere = np.empty(self._row_bytes, np.uint8)
        vectors = np.empty(stop - start, IOVEC)
        vectors["base"] = np.where(places < 0, nowhere.ctypes.data, out.ctypes.data + places * self._row_bytes)
        vectors["length"] = self._row_bytes
        for begin, end in self._cut(start, stop):
            self._scatter_chunk(begin, vectors[begin - start : end - start])

    def _cut(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield the parts of [start, stop) that lie in one chunk each."""
        while start < stop:
            end = min(stop, (start // self.chunk_size + 1) * self.chunk_size)
            yield start, end
            start = end

    def _locate(self, start: int) -> tuple[int, int, int, int]:
        """Return the shard of element `start`, offset and size in bytes of its chunk, and its place in the chunk."""
        shard, within = divmod(start, self._shard_size)
        chunk, skipped = divmod(within, self.chunk_size)
        offset, nbytes = self._index(shard)[chunk]
        if not self._min_bytes <= nbytes <= self._max_bytes or offset > MAX_OFFSET - nbytes:
            raise self._damaged(shard, NO_SHARD)
        return shard, offset, nbytes, skipped

    def _scatter_chunk(self, start: int, vectors: NDArray[np.void]) -> None:
        """Fill the memory at `vectors` with consecutive elements of one raw chunk."""
        shard, offset, _, skipped = self._locate(start)
        offset += skipped * self._row_bytes
        self._take(shard, len(vectors) * self._row_bytes, lambda file: _read_scattered(file, vectors, offset))

    def _read_chunk(self, start: int, rows: Any) -> None:
        """Fill `rows`, (element, byte) uint8, with consecutive elements of one chunk."""
        shard, offset, nbytes, skipped = self._locate(start)
        if self._stored is Stored.RAW:
            self._read_bytes(shard, rows, offset + skipped * rows.shape[1])
            return
        content = np.empty(nbytes, np.uint8)
        self._read_bytes(shard, content, offset)
        whole = rows if len(rows) == self.chunk_size else np.empty((self.chunk_size, rows.shape[1]), np.uint8)
        self._decompress(shard, content, whole)
        if whole is not rows:
            rows[...] = whole[skipped : skipped + len(rows)]

    def _decompress(self, shard: int, content: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        header = content[: blosc.MAX_OVERHEAD].view(BLOSC_HEADER)[0]
        # Blosc trusts these two sizes, and would read or write beyond the buffers
        if (header["nbytes"], header["cbytes"]) != (out.nbytes, content.nbytes):
            raise self._damaged(shard, NO_SHARD)
        try:
            blosc.decompress(content, out)
        except RuntimeError as error:
            raise self._damaged(shard, str(error)) from error

    def _read_index(self, shard: int) -> list[tuple[int, int]]:
        """Return (offset, size in bytes) of each chunk of a shard, from the index at the end of its file."""
        count = self._shard_size // self.chunk_size
        content = np.empty(count * INDEX_ENTRY.itemsize + CHECKSUM_BYTES, np.uint8)
        self._read_bytes(shard, content, -content.nbytes)
        entries: list[tuple[int, int]] = np.frombuffer(content, INDEX_ENTRY, count).tolist()
        return entries

    def _read_bytes(self, shard: int, out: Any, offset: int) -> None:
        """Fill `out`, uint8, from byte `offset` of a shard's file; a negative offset counts from the end."""

        def read(file: int) -> int:
            place = offset if offset >= 0 else max(0, os.fstat(file).st_size + offset)
            return os.preadv(file, [out], place)

        self._take(shard, out.nbytes, read)

    def _take(self, shard: int, nbytes: int, read: Callable[[int], int]) -> None:
        """Call `read` with the shard's open file; raises PipelineError unless it returns `nbytes`."""
        try:
            file = os.open(self._path(shard), os.O_RDONLY | os.O_CLOEXEC)
            try:
                taken = read(file)
            finally:
                os.close(file)
        except OSError as error:
            raise self._damaged(shard, error.strerror or str(error)) from error
        if taken != nbytes:
            raise self._damaged(shard, "the file is too short")

    def _make_path(self, shard: int) -> str:
        # zarr 3.1: metadata of an array, for the key of an object
        key = self._array.metadata.encode_chunk_key((shard,) + (0,) * (len(self.shape) - 1))
        return str(Path(str(self._folder), key))

    def _damaged(self, shard: int, what: str) -> PipelineError:
        return PipelineError(
            f"{self._path(shard)} (shard {shard}) cannot be read: {what}; run verify to see what else"
        )


def open_arrays(uri: str, root: Any, names: tuple[str, ...]) -> dict[str, ArrayReader]:
    """Return {name: reader} of arrays of the store at `uri`; `root` is the same place as a UPath."""
    group = zarr.open_group(uri, mode="r")
    folder = Path(str(root)) if is_local(root) else None
    return {name: ArrayReader(group, folder, name) for name in names}


def _read_scattered(file: int, vectors: NDArray[np.void], offset: int) -> int:
    """Read consecutive bytes of a file into memory at the places of IOVEC `vectors`; return how many were read.

    os.preadv takes one Python object per place, which costs more than copying the bytes.
    """
    taken = 0
    for first in range(0, len(vectors), MAX_VECTORS):
        part = vectors[first : first + MAX_VECTORS]
        count = _libc.preadv(file, part.ctypes.data, len(part), offset + taken)
        if count < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        taken += count
    return taken


def _how_stored(array: Any) -> Stored:
    """Return how the chunks of an array lie in its files; written against the codec metadata of zarr 3.1."""
    match array.metadata.codecs:
        case (ShardingCodec(index_location=ShardingCodecIndexLocation.end) as sharding,):
            # two index codecs: little-endian bytes and their CRC32C
            if len(sharding.index_codecs) > 1 and array.dtype.isnative:
                match sharding.codecs:
                    case (BytesCodec(),):
                        return Stored.RAW
                    case (BytesCodec(), BloscCodec()):
                        return Stored.BLOSC
    return Stored.OTHER
