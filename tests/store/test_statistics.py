"""Statistics: NumPy's mean and deviation, the same to the last bit however the frames were spread over shards."""

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.store.records import SUM_UNIT, ShardRecord
from pipeline.store.statistics import Statistics, combine


def record_of(frames: NDArray[np.float64]) -> ShardRecord:
    """The record of a shard with these training frames (frame, mfcc)."""
    sums, squares = frames.sum(axis=0), np.square(frames).sum(axis=0)
    return ShardRecord(
        index=0,
        checksums={},
        outcomes=(),
        train_count=len(frames),
        train_sum=tuple(round(x / SUM_UNIT) for x in sums.tolist()),
        train_sum_squares=tuple(round(x / SUM_UNIT) for x in squares.tolist()),
    )


def as_lists(statistics: Statistics) -> tuple[list[float], list[float], int]:
    return statistics.mean.tolist(), statistics.std.tolist(), statistics.count


def test_statistics_equal_those_of_numpy() -> None:
    frames = np.random.default_rng(0).normal([-400, 0, 3], [100, 1e-2, 20], size=(5000, 3))
    found = combine([record_of(part) for part in np.array_split(frames, 7)], 3)
    assert found.count == 5000
    np.testing.assert_allclose(found.mean, frames.mean(axis=0), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(found.std, frames.std(axis=0), rtol=1e-4)


# multiples of 1/16 with exact sums, so that only what `combine` does can differ
exact_frames = st.lists(st.tuples(*[st.integers(-16_000, 16_000).map(lambda n: n / 16)] * 2), min_size=1, max_size=40)


@given(exact_frames, st.lists(st.integers(0, 40), max_size=8), st.randoms(use_true_random=False))
def test_order_and_number_of_shards_change_nothing(
    rows: list[tuple[float, float]], cuts: list[int], shuffling: random.Random
) -> None:
    frames = np.array(rows)
    records = [record_of(part) for part in np.split(frames, sorted(cuts))]
    shuffling.shuffle(records)
    assert as_lists(combine(records, 2)) == as_lists(combine([record_of(frames)], 2))


@given(exact_frames)
def test_exact_sums_give_the_exact_mean(rows: list[tuple[float, float]]) -> None:
    frames = np.array(rows)
    found = combine([record_of(frames)], 2)
    np.testing.assert_allclose(found.mean, frames.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, frames.std(axis=0), rtol=1e-6, atol=1e-3)


def test_constant_features_have_no_deviation() -> None:
    found = combine([record_of(np.full((3, 1), -1131.37))] * 5, 1)
    np.testing.assert_allclose(found.mean, [-1131.37], rtol=1e-9)
    assert 0 <= found.std[0] < 0.05


@pytest.mark.parametrize("records", [[], [record_of(np.zeros((0, 2)))]])
def test_no_training_frame_gives_nan(records: list[ShardRecord]) -> None:
    found = combine(records, 2)
    assert found.count == 0
    assert np.isnan(found.mean).all()
    assert np.isnan(found.std).all()
    assert found.mean.shape == found.std.shape == (2,)


def test_sums_beyond_64_bits_are_added_exactly() -> None:
    huge = ShardRecord(
        index=0, checksums={}, outcomes=(), train_count=2**40, train_sum=(2**70,), train_sum_squares=(2**90,)
    )
    found = combine([huge] * 1000, 1)
    assert found.count == 1000 * 2**40
    np.testing.assert_allclose(found.mean, [2.0**10])
    np.testing.assert_allclose(found.std, [np.sqrt(2.0**30 - 2.0**20)])


def test_records_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        combine([record_of(np.zeros((1, 2)))], 3)
