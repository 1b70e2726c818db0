"""Streaming a feature store into TensorFlow: memory is a pool of chunks, whatever the store's size."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
import xarray as xr
import zarr
from numpy.typing import NDArray
from toolz import partition_all

from pipeline.schema import flag_names

POOL_CHUNKS = 16
"""Chunks mixed at a time. Recordings lie in random order in the store, so a pool of chunks drawn at random is a fair
sample of the split, and reading stays sequential within a chunk."""


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
        group = zarr.open_group(uri, mode="r")
        self._arrays: dict[str, Any] = {name: group[name] for name in ("features", "label", "recording", "valid")}
        self.sequences_per_chunk = int(self._arrays["features"].chunks[0])

    def chunks(self, split: str) -> list[tuple[int, int]]:
        """Return the sequences [start, stop) of each chunk, or part of one, that lies in `split`."""
        size, result = self.sequences_per_chunk, []
        for start, stop in self.split_runs.get(split, []):
            edges = [start, *range((start // size + 1) * size, stop, size), stop]
            result += list(itertools.pairwise(edges))
        return result

    def read(self, start: int, stop: int) -> Block:
        """Read the valid ones among the sequences [start, stop)."""
        keep = np.flatnonzero(self._arrays["valid"][start:stop])
        return Block(
            features=self._arrays["features"][start:stop][keep],
            label=self._arrays["label"][start:stop][keep].astype(np.int64),
            recording=self._arrays["recording"][start:stop][keep],
            index=start + keep,
        )

    def blocks(self, split: str, pool_chunks: int = POOL_CHUNKS) -> Iterator[Block]:
        """Yield a split in the order of the store, up to `pool_chunks` chunks a block."""
        for start, stop in self._spans(split, pool_chunks):
            block = self.read(start, stop)
            if len(block):
                yield block

    def shuffled_blocks(self, split: str, seed: int, epoch: int, pool_chunks: int = POOL_CHUNKS) -> Iterator[Block]:
        """Yield a split in an order that depends on (seed, epoch) alone.

        Chunks are drawn in random order, and the sequences of each `pool_chunks` of them are mixed.
        """
        random = np.random.default_rng([seed, epoch])
        chunks = self.chunks(split)
        for pool in partition_all(pool_chunks, random.permutation(len(chunks)).tolist()):
            parts = [self.read(*chunks[i]) for i in pool]
            order = random.permutation(sum(len(part) for part in parts))
            if len(order):
                yield Block(
                    features=np.concatenate([part.features for part in parts])[order],
                    label=np.concatenate([part.label for part in parts])[order],
                    recording=np.concatenate([part.recording for part in parts])[order],
                    index=np.concatenate([part.index for part in parts])[order],
                )

    def label_counts(self, split: str) -> NDArray[np.int64]:
        """Return how many valid sequences of each label a split holds: (label,) int64."""
        counts = np.zeros(len(self.labels), np.int64)
        for start, stop in self._spans(split, POOL_CHUNKS):
            label = self._arrays["label"][start:stop][self._arrays["valid"][start:stop]]
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

    return _batches(generate, (source.timesteps, source.n_mfcc), batch_size, int(source.label_counts(split).sum()))


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

    frames = int(source.label_counts(split).sum()) * source.timesteps
    return _batches(generate, (source.n_mfcc,), batch_size, frames)


def _batches(
    generate: Callable[[], Iterator[Any]], item: tuple[int, ...], batch_size: int, items: int
) -> tf.data.Dataset:
    """Cut the blocks of a generator, `items` items in all, into batches.

    Whole blocks go over to TensorFlow, which cuts them: a Python call a batch would be the bottleneck.
    """
    signature = tf.TensorSpec((None, *item), tf.float32), tf.TensorSpec((None,), tf.int64)
    dataset = tf.data.Dataset.from_generator(generate, output_signature=signature).rebatch(batch_size)
    return dataset.apply(tf.data.experimental.assert_cardinality(-(-items // batch_size))).prefetch(2)


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
