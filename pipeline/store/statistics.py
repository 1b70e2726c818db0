"""Training mean and standard deviation, combined from the shards' sums."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from pipeline.store.records import SUM_UNIT, ShardRecord


@dataclass(frozen=True)
class Statistics:
    """Over all frames of valid training sequences: `mean` and `std` are (mfcc,) float64, `count` is in frames."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    count: int


@njit(cache=True)
def add_frames(frames: NDArray[np.float32], total: NDArray[np.float64], squares: NDArray[np.float64]) -> None:
    """Add (frame, mfcc) values and their squares to the sums (mfcc,), frame by frame, in one reading of memory."""
    for i in range(frames.shape[0]):
        for k in range(frames.shape[1]):
            value = np.float64(frames[i, k])
            total[k] += value
            squares[k] += value * value


def combine(records: Iterable[ShardRecord], n_mfcc: int) -> Statistics:
    """Combine the sums of all shards; NaN where there is no training frame.

    The shards' sums are integers, so neither their order, nor whether they came in one run or several, makes any
    difference.
    """
    count, total, squares = 0, [0] * n_mfcc, [0] * n_mfcc
    for record in records:
        count += record.train_count
        total = [a + b for a, b in zip(total, record.train_sum, strict=True)]
        squares = [a + b for a, b in zip(squares, record.train_sum_squares, strict=True)]
    if not count:
        return Statistics(np.full(n_mfcc, np.nan), np.full(n_mfcc, np.nan), 0)
    mean = np.array(total, np.float64) * (SUM_UNIT / count)
    square = np.array(squares, np.float64) * (SUM_UNIT / count)
    return Statistics(mean, np.sqrt(np.maximum(square - mean**2, 0)), count)
