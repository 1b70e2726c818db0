"""Streaming a feature store into TensorFlow. Memory is a few pools of chunks, whatever the size of the store."""

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

Items = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Features (item, timestep, feature) of sequences or (item, feature) of frames, and labels (item,)."""


def sequence_dataset(
    store: str | Store,
    split: str,
    batch_size: int,
    seed: int = 0,
    *,
    shuffle: bool = True,
    first_epoch: int = 0,
    pool_chunks: int = POOL_CHUNKS,
    frames: bool = False,
) -> tf.data.Dataset:
    """Return the valid sequences of a split as batches of features and labels.

    Features are (batch, timestep, feature) float32, labels (batch,) int64; the last batch may be smaller. Memory is a
    few blocks of `pool_chunks` chunks.

    Args:
        store: an open store, or the path or URL of one.
        split: "train", "validation" or "test".
        batch_size: sequences (or frames) per batch.
        seed: determines the order together with the number of the epoch.
        shuffle: give each pass over the dataset another order; otherwise all passes have the order of the store.
        first_epoch: the number of the first pass, so that a continued training sees what an uninterrupted one sees.
        pool_chunks: chunks that are drawn at random and mixed with each other.
        frames: give single frames, (batch, feature), mixed within their pool; each has the label of its sequence.

    Raises:
        ValueError: there is no store or no split of that name, or a number is too small.
        PipelineError: a shard is missing or damaged. TensorFlow wraps it in an OpError while it iterates; `reason`
            returns it.
    """
    counts = {"batch_size": batch_size, "pool_chunks": pool_chunks, "seed": seed, "first_epoch": first_epoch}
    for name, value in counts.items():
        lowest = 0 if name in {"seed", "first_epoch"} else 1
        if value < lowest:
            raise ValueError(f"{name} = {value}: it must be at least {lowest}")
    source = store if isinstance(store, Store) else Store(store)
    passes = _passes(source, split, seed, first_epoch, pool_chunks, shuffle=shuffle)

    def generate() -> Iterator[Items]:
        for block in passes():
            yield _frames_of(block, seed, shuffle=shuffle) if frames else (block.features, block.label)

    count = source.sequences(split)
    if frames:
        return _batches(generate, (source.n_features,), batch_size, count * source.timesteps)
    return _batches(generate, (source.timesteps, source.n_features), batch_size, count)


def reason(error: tf.errors.OpError) -> Exception:
    """Return the PipelineError that a dataset raised while reading, or `error` if it has another cause.

    TensorFlow passes on only the text of an exception.
    """
    found = re.search(rf"\b{PipelineError.__name__}: (.+)", error.message)
    return PipelineError(found[1]) if found else error


def _passes(
    store: Store, split: str, seed: int, first_epoch: int, pool_chunks: int, *, shuffle: bool
) -> Callable[[], Iterator[Block]]:
    """Return a function that returns the blocks of the next epoch at each call."""
    epochs = itertools.count(first_epoch)

    def blocks() -> Iterator[Block]:
        if shuffle:
            return store.shuffled_blocks(split, seed, next(epochs), pool_chunks)
        return store.blocks(split, pool_chunks)

    return blocks


def _frames_of(block: Block, seed: int, *, shuffle: bool) -> Items:
    """Return the frames (frame, feature) and labels (frame,) of a block, in an order that `seed` and block give."""
    sequences, timesteps, width = block.features.shape
    frames, label = block.features.reshape(sequences * timesteps, width), np.repeat(block.label, timesteps)
    if not shuffle:
        return frames, label
    order = np.random.default_rng([seed, *block.index[:1].tolist()]).permutation(len(frames))
    return frames[order], label[order]


def _batches(
    generate: Callable[[], Iterator[Items]], item: tuple[int, ...], batch_size: int, count: int
) -> tf.data.Dataset:
    """Cut the blocks of a generator into batches of items of shape `item`; `count` is the number of items.

    TensorFlow receives whole blocks and cuts them, because one Python call per batch would be the bottleneck.
    """

    def blocks_until_exit() -> Iterator[Any]:
        keep_freed_memory()
        yield from until_exit(generate())

    signature = tf.TensorSpec((None, *item), tf.float32), tf.TensorSpec((None,), tf.int64)
    blocks = tf.data.Dataset.from_generator(blocks_until_exit, output_signature=signature)
    # the next block is read while this one is cut
    dataset = blocks.prefetch(1).rebatch(batch_size)
    dataset = dataset.apply(tf.data.experimental.assert_cardinality(-(-count // batch_size)))
    options = tf.data.Options()
    # nothing here can be tuned, and dropping an iterator may wait seconds for the tuning thread to wake up
    options.autotune.enabled = False
    return dataset.prefetch(2).with_options(options)
