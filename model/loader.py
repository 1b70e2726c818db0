"""Streaming a feature store into TensorFlow: memory is a pool of chunks, whatever the store's size."""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import xarray as xr
from numpy.typing import NDArray
from upath import UPath

from model.chunks import open_arrays
from model.handover import keep_freed_memory, until_exit
from pipeline.errors import PipelineError
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


def sequence_dataset(
    store: str | Store,
    split: str,
    batch_size: int,
    seed: int = 0,
    *,
    shuffle: bool = True,
    first_epoch: int = 0,
    pool_chunks: int = POOL_CHUNKS,
) -> tf.data.Dataset:
    """Return batches of (batch, timestep, mfcc) float32 features and (batch,) int64 labels.

    Each pass over the dataset is an epoch with an order of its own, a function of `seed` and the epoch's number;
    epochs count from `first_epoch`, so a continued training sees what an uninterrupted one would have seen. Without
    `shuffle` every pass is in the order of the store. Only valid sequences come; the last batch may be smaller.
    Memory is a few blocks of `pool_chunks` chunks.
    """
    source = store if isinstance(store, Store) else Store(store)
    blocks = _epochs(source, split, seed, first_epoch, pool_chunks, shuffle=shuffle)

    def generate() -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        for block in blocks():
            yield block.features, block.label

    return _batches(generate, (source.timesteps, source.n_mfcc), batch_size, _sequences(source, split))


def frame_dataset(
    store: str | Store,
    split: str,
    batch_size: int,
    seed: int = 0,
    *,
    shuffle: bool = True,
    first_epoch: int = 0,
    pool_chunks: int = POOL_CHUNKS,
) -> tf.data.Dataset:
    """Return batches of single frames: (batch, mfcc) float32 features and (batch,) int64 labels.

    As `sequence_dataset`, with the frames of a pool mixed and every frame labelled as its sequence.
    """
    source = store if isinstance(store, Store) else Store(store)
    blocks = _epochs(source, split, seed, first_epoch, pool_chunks, shuffle=shuffle)

    def generate() -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        for block in blocks():
            frames = block.features.reshape(-1, source.n_mfcc)
            label = np.repeat(block.label, source.timesteps)
            if shuffle:
                order = np.random.default_rng([seed, *block.index[:1].tolist()]).permutation(len(frames))
                frames, label = frames[order], label[order]
            yield frames, label

    items = _sequences(source, split)
    return _batches(generate, (source.n_mfcc,), batch_size, items and items * source.timesteps)


def reason(error: tf.errors.OpError) -> Exception:
    """Return the PipelineError of a dataset's reading, of which TensorFlow hands over the text alone, or `error`."""
    found = re.search(rf"\b{PipelineError.__name__}: (.+)", error.message)
    return PipelineError(found[1]) if found else error


def _sequences(store: Store, split: str) -> int | None:
    """Return how many sequences a pass gives; of a trainer's part that is another number in each epoch."""
    return None if store.sharded else int(store.label_counts(split).sum())


def _batches(
    generate: Callable[[], Iterator[Any]], item: tuple[int, ...], batch_size: int, items: int | None
) -> tf.data.Dataset:
    """Cut the blocks of a generator, `items` items in all if that is known, into batches.

    Whole blocks go over to TensorFlow, which cuts them: a Python call a batch would be the bottleneck.
    """

    def blocks_until_exit() -> Iterator[Any]:
        keep_freed_memory()
        yield from until_exit(generate())

    signature = tf.TensorSpec((None, *item), tf.float32), tf.TensorSpec((None,), tf.int64)
    blocks = tf.data.Dataset.from_generator(blocks_until_exit, output_signature=signature)
    # the next block is read while this one is cut
    dataset = blocks.prefetch(1).rebatch(batch_size)
    if items is not None:
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(-(-items // batch_size)))
    options = tf.data.Options()
    # there is nothing to tune, and who drops an iterator may wait seconds for the thread that tunes to wake up
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)


def _epochs(
    store: Store, split: str, seed: int, first_epoch: int, pool_chunks: int, *, shuffle: bool
) -> Callable[[], Iterator[Block]]:
    """Return a function that gives the blocks of the next epoch at each call."""
    epochs = itertools.count(first_epoch)

    def blocks() -> Iterator[Block]:
        if shuffle:
            return store.shuffled_blocks(split, seed, next(epochs), pool_chunks)
        return store.blocks(split, pool_chunks)

    return blocks
