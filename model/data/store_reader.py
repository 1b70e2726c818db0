"""Reading a feature store in blocks of sequences, in the order of the store or shuffled."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from upath import UPath

from model.data.array_reader import open_arrays
from pipeline.errors import UsageError
from pipeline.schema import flag_names, version_mismatch

POOL_CHUNKS = 16
"""Chunks that are mixed at a time. Recordings are stored in random order, so a pool of chunks drawn at random is a
fair sample of the split, and each chunk is still read sequentially."""

ALIGNMENT = 64
"""Bytes; TensorFlow copies arrays that begin at another multiple."""


@dataclass(frozen=True)
class Block:
    """Valid sequences that were read together.

    `features` (sequence, timestep, feature) float32; `label` (sequence,) int64; `recording` (sequence,) uint32, the
    row of the manifest; `index` (sequence,) int64, the place in the store; `extra`: the further variables that the
    store was opened with, by name.
    """

    features: NDArray[np.float32]
    label: NDArray[np.int64]
    recording: NDArray[np.uint32]
    index: NDArray[np.int64]
    extra: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.label)


def _aligned(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return an uninitialised array that TensorFlow takes without copying it."""
    values = math.prod(shape)
    raw = np.empty(values + ALIGNMENT // 4, np.float32)
    skipped = -raw.ctypes.data % ALIGNMENT // 4
    return raw[skipped : skipped + values].reshape(shape)


class Store:
    """A feature store opened for reading; holds only metadata.

    `extra` names further variables over `sequence` that each block is to hold. Raises UsageError for a variable that
    the store does not have, and for a store of another schema version.
    """

    def __init__(self, uri: str, extra: Sequence[str] = ()) -> None:
        with xr.open_zarr(uri, chunks=None) as dataset:  # with chunks Dask would list every chunk of the store
            mismatch = version_mismatch(uri, dataset.attrs.get("schema_version"))
            if mismatch:
                raise UsageError(mismatch)
            self.labels = flag_names(dataset["label"].attrs)
            self.split_runs: dict[str, list[list[int]]] = dataset.attrs["split_runs"]
            self.attributes: dict[str, Any] = dict(dataset.attrs)
            self.train_mean: NDArray[np.float64] = dataset["train_mean"].to_numpy()
            self.train_std: NDArray[np.float64] = dataset["train_std"].to_numpy()
            self.timesteps, self.n_features = dataset["features"].shape[1:]
            there = sorted(str(name) for name, array in dataset.items() if array.dims == ("sequence",))
        for name in extra:
            if name not in there:
                raise UsageError(f"{uri} has no variable {name} over sequence; it has {', '.join(there)}")
        self.uri = uri
        self._extra = tuple(extra)
        self._arrays = open_arrays(uri, UPath(uri), ("features", "label", "recording", "valid", *extra))
        self.sequences_per_chunk = self._arrays["features"].chunk_size
        self._index, self._of = 0, 1

    def part(self, index: int, of: int) -> "Store":
        """Return the part of the store for trainer `index` of `of`: every `of`-th chunk in an epoch's order.

        Together the trainers read every sequence once. Raises ValueError unless 0 <= index < of.
        """
        if not 0 <= index < of:
            raise ValueError(f"part {index} of {of}: the index must be at least 0 and less than the number of parts")
        store = copy(self)
        store._index, store._of = index, of
        return store

    @property
    def is_part(self) -> bool:
        """Whether this is one of several parts of a store."""
        return self._of > 1

    def chunks(self, split: str) -> NDArray[np.int64]:
        """Return the sequences [start, stop) of each chunk, or part of a chunk, in `split`: (chunk, 2)."""
        size = self.sequences_per_chunk
        parts = [np.empty((0, 2), np.int64)]
        for start, stop in self.split_runs.get(split, []):
            edges = np.arange(start // size, -(-stop // size) + 1, dtype=np.int64) * size
            np.clip(edges, start, stop, out=edges)
            parts.append(np.stack([edges[:-1], edges[1:]], axis=1))
        return np.concatenate(parts)

    @property
    def block_size(self) -> int:
        """Default number of sequences that are read together."""
        return POOL_CHUNKS * self.sequences_per_chunk

    def read(self, start: int, stop: int) -> Block:
        """Read the valid ones of the sequences [start, stop)."""
        return self._block([(start, stop)])

    def blocks(self, split: str, pool_chunks: int = POOL_CHUNKS) -> Iterator[Block]:
        """Yield a split in the order of the store, up to `pool_chunks` chunks per block."""
        for start, stop in itertools.islice(self._spans(split, pool_chunks), self._index, None, self._of):
            block = self.read(start, stop)
            if len(block):
                yield block

    def shuffled_blocks(self, split: str, seed: int, epoch: int, pool_chunks: int = POOL_CHUNKS) -> Iterator[Block]:
        """Yield a split in an order that depends only on (seed, epoch).

        Chunks are drawn in random order, and the sequences of `pool_chunks` chunks at a time are mixed.
        """
        random = np.random.default_rng([seed, epoch])
        chunks = self.chunks(split)
        order = random.permutation(len(chunks))[self._index :: self._of]
        for begin in range(0, len(order), pool_chunks):
            block = self._block(chunks[order[begin : begin + pool_chunks]].tolist(), random)
            if len(block):
                yield block

    def _block(self, spans: Sequence[tuple[int, int]], random: np.random.Generator | None = None) -> Block:
        """Read the valid ones of the sequences [start, stop) of all spans, in the order of the store or shuffled."""
        read = {
            name: np.concatenate([self._arrays[name].read(*span) for span in spans])
            for name in ("valid", "label", "recording", *self._extra)
        }
        rows = np.flatnonzero(read["valid"])
        if random is not None:
            rows = rows[random.permutation(len(rows))]
        places = np.full(len(read["valid"]), -1, np.int64)
        places[rows] = np.arange(len(rows))
        features = _aligned((len(rows), self.timesteps, self.n_features))
        begin = 0
        for start, stop in spans:
            self._arrays["features"].scatter(start, stop, features, places[begin : begin + stop - start])
            begin += stop - start
        return Block(
            features=features,
            label=read["label"][rows].astype(np.int64),
            recording=read["recording"][rows],
            index=np.concatenate([np.arange(*span) for span in spans])[rows],
            extra={name: read[name][rows] for name in self._extra},
        )

    def label_counts(self, split: str) -> NDArray[np.int64]:
        """Return the number of valid sequences of each label in a split: (label,) int64."""
        counts = np.zeros(len(self.labels), np.int64)
        for start, stop in self._spans(split, POOL_CHUNKS):
            label = self._arrays["label"].read(start, stop)[self._arrays["valid"].read(start, stop)]
            counts += np.bincount(label, minlength=len(counts))
        return counts

    def _spans(self, split: str, pool_chunks: int) -> Iterator[tuple[int, int]]:
        """Yield the sequences [start, stop) of a split, up to `pool_chunks` chunks at a time."""
        step = pool_chunks * self.sequences_per_chunk
        for start, stop in self.split_runs.get(split, []):
            for begin in range(start, stop, step):
                yield begin, min(begin + step, stop)
