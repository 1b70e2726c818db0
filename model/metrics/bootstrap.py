"""How far a macro F1 over recordings can be relied on: intervals by resampling speakers.

The recordings of one speaker are alike, so speakers are drawn again and again with replacement, each with all of their
recordings. Of few speakers the interval is too narrow rather than too wide: what they have in common is not in it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.stats import bootstrap

CONFIDENCE = 0.95
RESAMPLES = 2000
MAX_DRAWN = 2**20
"""Speakers drawn at a time, in all resamples together, which bounds memory."""
MIN_RESAMPLED = 2
"""Speakers; one alone says nothing of others."""

Array = NDArray[Any]
Weights = NDArray[np.float64]
"""How often each speaker is in each resample: (resample, speaker) float64."""


@dataclass(frozen=True)
class Answers:
    """What a model says of the test recordings, in the order of the store.

    `true` and `predicted` are codes of languages and `speaker` tells speakers apart, all (recording,) int64. `labels`
    counts the languages of the store; a predicted code from there on is a language that the store does not hold.
    """

    true: NDArray[np.int64]
    predicted: NDArray[np.int64]
    speaker: NDArray[np.int64]
    labels: int

    @property
    def speakers(self) -> int:
        """How many speakers there are; a recording without a named speaker is one of its own."""
        return len(np.unique(self.speaker))

    def only(self, keep: NDArray[np.bool_]) -> "Answers":
        """Return the answers for some of the recordings."""
        return Answers(self.true[keep], self.predicted[keep], self.speaker[keep], self.labels)


@dataclass(frozen=True)
class Estimate:
    """A value with its interval at CONFIDENCE, which is None where fewer than two speakers leave it unknown."""

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        interval = "no interval" if self.low is None else f"{self.low:.3f} to {self.high:.3f}"
        return f"{self.value:.3f} ({interval})"


def macro_f1(answers: Answers, seed: int) -> Estimate:
    """Return the macro F1 over the languages that were spoken, with its interval."""
    return _estimate(_f1_of(answers), answers.speakers, seed)[0]


def gain(challenger: Answers, champion: Answers | float, least: float, seed: int) -> tuple[Estimate, float | None]:
    """Return by how much the challenger's macro F1 is higher, and in which fraction of resamples by more than `least`.

    `champion` has answered the same recordings, and is resampled with the challenger; or it is a fixed macro F1. The
    fraction is None where there is no interval.
    """
    f1 = _f1_of(challenger)
    fixed = None if isinstance(champion, Answers) else champion
    other = _f1_of(champion) if isinstance(champion, Answers) else None
    estimate, resampled = _estimate(
        lambda weights: f1(weights) - (fixed if other is None else other(weights)), challenger.speakers, seed
    )
    return estimate, None if resampled is None else float(np.mean(resampled > least))


def _estimate(statistic: Callable[[Weights], Array], speakers: int, seed: int) -> tuple[Estimate, Array | None]:
    """Return the value of a statistic with its interval, and its values (resample,) in the resamples."""
    value = float(statistic(np.ones((1, speakers)))[0])
    if speakers < MIN_RESAMPLED:
        return Estimate(value, None, None), None
    result = bootstrap(
        (np.arange(speakers),),
        lambda drawn, axis: statistic(_weights(drawn)),  # noqa: ARG005 the axis is the last
        n_resamples=RESAMPLES, batch=max(1, MAX_DRAWN // speakers), vectorized=True,
        confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = result.confidence_interval
    return Estimate(value, float(low), float(high)), result.bootstrap_distribution


def _weights(drawn: NDArray[np.int64]) -> Weights:
    """Return how often each speaker is among those drawn, (resample, speaker) both."""
    resamples, speakers = drawn.shape
    places = drawn + speakers * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)


def _f1_of(answers: Answers) -> Callable[[Weights], Array]:
    """Return the function from weights to macro F1 (resample,), over the languages spoken in each resample."""
    _, speaker = np.unique(answers.speaker, return_inverse=True)
    right = answers.true == answers.predicted
    named = answers.predicted < answers.labels
    rows = np.concatenate([speaker[right], speaker[named], speaker])
    columns = np.concatenate([answers.true[right], answers.predicted[named] + answers.labels,
                              answers.true + 2 * answers.labels])  # fmt: skip
    shape = (answers.speakers, 3 * answers.labels)
    counts = coo_array((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()  # sums what is in one place

    def f1(weights: Weights) -> Array:
        right, named, spoken = np.split((counts.T @ weights.T).T, 3, axis=1)  # (resample, label) each
        present = spoken > 0
        each = np.where(present, 2 * right / np.maximum(named + spoken, 1), 0)
        return np.asarray(each.sum(axis=1) / present.sum(axis=1))

    return f1
