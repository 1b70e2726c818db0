"""Streaming a feature store into TensorFlow: memory is a pool of chunks, whatever the store's size."""

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model.data.generator import keep_freed_memory, until_exit
from model.data.store_reader import POOL_CHUNKS, Block, Store
from pipeline.errors import PipelineError


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
    """Return batches of (batch, timestep, feature) float32 features and (batch,) int64 labels.

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

    return _batches(generate, (source.timesteps, source.n_features), batch_size, _sequences(source, split))


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
    """Return batches of single frames: (batch, feature) float32 features and (batch,) int64 labels.

    As `sequence_dataset`, with the frames of a pool mixed and every frame labelled as its sequence.
    """
    source = store if isinstance(store, Store) else Store(store)
    blocks = _epochs(source, split, seed, first_epoch, pool_chunks, shuffle=shuffle)

    def generate() -> Iterator[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        for block in blocks():
            frames = block.features.reshape(-1, source.n_features)
            label = np.repeat(block.label, source.timesteps)
            if shuffle:
                order = np.random.default_rng([seed, *block.index[:1].tolist()]).permutation(len(frames))
                frames, label = frames[order], label[order]
            yield frames, label

    items = _sequences(source, split)
    return _batches(generate, (source.n_features,), batch_size, items and items * source.timesteps)


def reason(error: tf.errors.OpError) -> Exception:
    """Return the PipelineError of a dataset's reading, of which TensorFlow hands over the text alone, or `error`."""
    found = re.search(rf"\b{PipelineError.__name__}: (.+)", error.message)
    return PipelineError(found[1]) if found else error


def _sequences(store: Store, split: str) -> int | None:
    """Return how many sequences a pass gives; of a trainer's part that is another number in each epoch."""
    return None if store.is_part else int(store.label_counts(split).sum())


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
