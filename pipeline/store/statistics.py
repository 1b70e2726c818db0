"""Mean and standard deviation of the training features, combined from the sums of the shards."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.features.jit import njit
from pipeline.store.records import SUM_UNIT, ShardRecord


@dataclass(frozen=True)
class Statistics:
    """Over all frames of valid training sequences: `mean` and `std` (feature,) float64, `count` in frames."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    count: int


@njit(cache=True)
def add_frames(frames: NDArray[np.float32], total: NDArray[np.float64], squares: NDArray[np.float64]) -> None:
    """Add (frame, feature) values to `total`, (feature,), and their squares to `squares`, frame by frame.

    One pass over memory, in an order that does not depend on the machine.
    """
    for i in range(frames.shape[0]):
        for k in range(frames.shape[1]):
            value = np.float64(frames[i, k])
            total[k] += value
            squares[k] += value * value


class TrainSums(NamedTuple):
    """The sums of several shards, in the units of a `ShardRecord`."""

    train_count: int
    train_sum: tuple[int, ...]
    train_sum_squares: tuple[int, ...]


def add_up(parts: Iterable[ShardRecord | TrainSums], size: int) -> TrainSums:
    """Return the sums of all `parts`, `size` features per frame.

    They are integers of any size, so the result depends neither on the order of the shards nor on how many runs wrote
    them.
    """
    count, total, squares = 0, [0] * size, [0] * size
    for part in parts:
        count += part.train_count
        total = [a + b for a, b in zip(total, part.train_sum, strict=True)]
        squares = [a + b for a, b in zip(squares, part.train_sum_squares, strict=True)]
    return TrainSums(count, tuple(total), tuple(squares))


def combine(parts: Iterable[ShardRecord | TrainSums], size: int) -> Statistics:
    """Return the statistics of all shards, `size` features per frame: NaN where there is no training frame."""
    count, total, squares = add_up(parts, size)
    if not count:
        return Statistics(np.full(size, np.nan), np.full(size, np.nan), 0)
    mean = np.array(total, np.float64) * (SUM_UNIT / count)
    square = np.array(squares, np.float64) * (SUM_UNIT / count)
    return Statistics(mean, np.sqrt(np.maximum(square - mean**2, 0)), count)
