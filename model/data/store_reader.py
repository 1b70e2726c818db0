"""Reading a feature store in blocks of sequences, in the order of the store or shuffled."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from upath import UPath

from model.data.array_reader import open_arrays
from pipeline.schema import flag_names

POOL_CHUNKS = 16
"""Chunks mixed at a time. Recordings lie in random order in the store, so a pool of chunks drawn at random is a fair
sample of the split, and reading stays sequential within a chunk."""

ALIGNMENT = 64
"""Bytes; TensorFlow copies arrays that begin elsewhere."""


@dataclass(frozen=True)
class Block:
    """Valid sequences that were read together.

    `features` (sequence, timestep, mfcc) float32; `label` (sequence,) int64; `recording` (sequence,) uint32, the row
    of the manifest; `index` (sequence,) int64, the place in the store.
    """

    features: NDArray[np.float32]
    label: NDArray[np.int64]
    recording: NDArray[np.uint32]
    index: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)


def _aligned(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return an uninitialised array that TensorFlow takes without copying it."""
    values = math.prod(shape)
    raw = np.empty(values + ALIGNMENT // 4, np.float32)
    skipped = -raw.ctypes.data % ALIGNMENT // 4
    return raw[skipped : skipped + values].reshape(shape)


class Store:
    """A feature store opened for reading. Holds metadata alone."""

    def __init__(self, uri: str) -> None:
        with xr.open_zarr(uri, chunks=None) as dataset:  # Dask would list every chunk of a store in memory
            self.labels = flag_names(dataset["label"].attrs)
            self.split_runs: dict[str, list[list[int]]] = dataset.attrs["split_runs"]
            self.attributes: dict[str, Any] = dict(dataset.attrs)
            self.train_mean: NDArray[np.float64] = dataset["train_mean"].to_numpy()
            self.train_std: NDArray[np.float64] = dataset["train_std"].to_numpy()
            self.timesteps, self.n_mfcc = dataset.sizes["timestep"], dataset.sizes["mfcc"]
        self.uri = uri
        self._arrays = open_arrays(uri, UPath(uri), ("features", "label", "recording", "valid"))
        self.sequences_per_chunk = self._arrays["features"].chunk_size
        self._part = (0, 1)

    def shard(self, index: int, count: int) -> "Store":
        """Return the store as trainer `index` of `count` sees it: every `count`-th chunk of an epoch's order.

        Together the trainers see every sequence once. Raises ValueError unless 0 <= index < count.
        """
        if not 0 <= index < count:
            raise ValueError(f"shard {index} of {count}: the index must be at least 0 and below the count")
        store = copy(self)
        store._part = (index, count)
        return store

    @property
    def sharded(self) -> bool:
        """Whether this is one trainer's part of a store."""
        return self._part[1] > 1

    def chunks(self, split: str) -> NDArray[np.int64]:
        """Return the sequences [start, stop) of each chunk, or part of one, that lies in `split`: (chunk, 2)."""
        size = self.sequences_per_chunk
        parts = [np.empty((0, 2), np.int64)]
        for start, stop in self.split_runs.get(split, []):
            edges = np.arange(start // size, -(-stop // size) + 1, dtype=np.int64) * size
            np.clip(edges, start, stop, out=edges)
            parts.append(np.stack([edges[:-1], edges[1:]], axis=1))
        return np.concatenate(parts)

    @property
    def block_size(self) -> int:
        """Sequences that are read together, unless asked otherwise."""
        return POOL_CHUNKS * self.sequences_per_chunk

    def read(self, start: int, stop: int) -> Block:
        """Read the valid ones among the sequences [start, stop)."""
        return self._block([(start, stop)], np.arange)

    def blocks(self, split: str, pool_chunks: int = POOL_CHUNKS) -> Iterator[Block]:
        """Yield a split in the order of the store, up to `pool_chunks` chunks a block."""
        for start, stop in itertools.islice(self._spans(split, pool_chunks), *self._part_of_all()):
            block = self.read(start, stop)
            if len(block):
                yield block

    def shuffled_blocks(self, split: str, seed: int, epoch: int, pool_chunks: int = POOL_CHUNKS) -> Iterator[Block]:
        """Yield a split in an order that depends on (seed, epoch) alone.

        Chunks are drawn in random order, and the sequences of each `pool_chunks` of them are mixed.
        """
        random = np.random.default_rng([seed, epoch])
        chunks = self.chunks(split)
        order = random.permutation(len(chunks))[slice(*self._part_of_all())]
        for begin in range(0, len(order), pool_chunks):
            block = self._block(chunks[order[begin : begin + pool_chunks]].tolist(), random.permutation)
            if len(block):
                yield block

    def _block(self, spans: Sequence[tuple[int, int]], order: Callable[[int], NDArray[np.int64]]) -> Block:
        """Read the valid ones of the sequences [start, stop) of all spans, in the `order` that it gives of so many."""
        valid, label, recording = (
            np.concatenate([self._arrays[name].read(*span) for span in spans])
            for name in ("valid", "label", "recording")
        )
        rows = np.flatnonzero(valid)
        rows = rows[order(len(rows))]
        places = np.full(len(valid), -1, np.int64)
        places[rows] = np.arange(len(rows))
        features = _aligned((len(rows), self.timesteps, self.n_mfcc))
        begin = 0
        for start, stop in spans:
            self._arrays["features"].scatter(start, stop, features, places[begin : begin + stop - start])
            begin += stop - start
        index = np.concatenate([np.arange(*span) for span in spans])
        return Block(features, label[rows].astype(np.int64), recording[rows], index[rows])

    def _part_of_all(self) -> tuple[int, None, int]:
        """Return start, stop and step of this trainer's part of a sequence."""
        index, count = self._part
        return index, None, count

    def label_counts(self, split: str) -> NDArray[np.int64]:
        """Return how many valid sequences of each label a split holds: (label,) int64."""
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
