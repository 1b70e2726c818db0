"""Mean and standard deviation of the training features, combined from the sums of the shards."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from typing import NamedTuple, Self

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

    @classmethod
    def zero(cls, size: int) -> Self:
        """Return the sums of no shard, `size` features per frame."""
        return cls(0, (0,) * size, (0,) * size)

    def plus(self, other: "ShardRecord | TrainSums") -> "TrainSums":
        """Return the sums with those of `other`: integers of any size, which do not depend on the order of shards."""
        return TrainSums(
            self.train_count + other.train_count,
            tuple(map(sum, zip(self.train_sum, other.train_sum, strict=True))),
            tuple(map(sum, zip(self.train_sum_squares, other.train_sum_squares, strict=True))),
        )


def combine(parts: Iterable[ShardRecord | TrainSums], size: int) -> Statistics:
    """Return the statistics of all shards, `size` features per frame: NaN where there is no training frame.

    They depend neither on the order of the shards nor on how many runs wrote them.
    """
    count, total, squares = reduce(TrainSums.plus, parts, TrainSums.zero(size))
    if not count:
        return Statistics(np.full(size, np.nan), np.full(size, np.nan), 0)
    mean = np.array(total, np.float64) * (SUM_UNIT / count)
    square = np.array(squares, np.float64) * (SUM_UNIT / count)
    return Statistics(mean, np.sqrt(np.maximum(square - mean**2, 0)), count)
