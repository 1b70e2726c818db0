"""Intervals of the macro F1 over recordings, from resampling speakers.

The recordings of one speaker are alike. Speakers are therefore drawn with replacement, each with all of their
recordings (cluster bootstrap, percentile intervals: Davison and Hinkley, Bootstrap Methods and their Application,
1997). With few speakers the interval is too narrow rather than too wide.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.stats import bootstrap

from model.metrics.estimate import Estimate
from model.metrics.levels import Scores

CONFIDENCE: Final = 0.95
RESAMPLES: Final = 2000
MAX_DRAWN: Final = 2**20
"""Speakers drawn at a time, over all resamples together; bounds memory."""
MIN_SPEAKERS: Final = 2
"""One speaker alone says nothing about others."""

Array = NDArray[Any]
Codes = NDArray[np.integer[Any]]
Weights = NDArray[np.float64]
"""How often each speaker is in each resample: (resample, speaker) float64."""


@dataclass(frozen=True)
class Answers:
    """The language that a model names for each test recording.

    `true` and `predicted` are codes of languages, `speaker` is a number for each speaker; all (recording,) integers.
    """

    true: Codes
    predicted: Codes
    speaker: Codes

    @classmethod
    def of(cls, recordings: Scores) -> "Answers":
        """Return the answers for the scores of recordings: 8 bytes per recording."""
        parts = [
            (block.label.astype(np.uint16), block.predicted.astype(np.uint16), block.speaker.astype(np.uint32))
            for block in recordings.blocks()
        ]  # the types of the file of scores
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    @property
    def speakers(self) -> int:
        """The number of speakers; a recording without a named speaker counts as one."""
        return len(np.unique(self.speaker))

    def only(self, keep: NDArray[np.bool_]) -> "Answers":
        """Return the answers for some of the recordings."""
        return Answers(self.true[keep], self.predicted[keep], self.speaker[keep])


def macro_f1(answers: Answers, seed: int) -> Estimate:
    """Return the macro F1 over the languages of the recordings, with its interval at CONFIDENCE."""
    return _estimate(_f1_of(answers), answers.speakers, seed)[0]


def gain(challenger: Answers, champion: Answers | float, least: float, seed: int) -> tuple[Estimate, float | None]:
    """Return the difference of two macro F1, and the fraction of resamples in which it is larger than `least`.

    `champion` has the answers for the same recordings and is resampled together with the challenger, or is a fixed
    macro F1. The fraction is None if there is no interval.
    """
    f1 = _f1_of(challenger)
    fixed = None if isinstance(champion, Answers) else champion
    other = _f1_of(champion) if isinstance(champion, Answers) else None
    estimate, resampled = _estimate(
        lambda weights: f1(weights) - (fixed if other is None else other(weights)), challenger.speakers, seed
    )
    return estimate, None if resampled is None else float(np.mean(resampled > least))


def _estimate(statistic: Callable[[Weights], Array], speakers: int, seed: int) -> tuple[Estimate, Array | None]:
    """Return the value of a statistic with its interval, and its value in each resample (resample,)."""
    value = float(statistic(np.ones((1, speakers)))[0])
    if speakers < MIN_SPEAKERS:
        return Estimate(value=value, low=None, high=None), None
    result = bootstrap(
        (np.arange(speakers),),
        lambda drawn, axis: statistic(_weights(drawn)),  # noqa: ARG005 the axis is the last
        n_resamples=RESAMPLES, batch=max(1, MAX_DRAWN // speakers), vectorized=True,
        confidence_level=CONFIDENCE, method="percentile", rng=np.random.default_rng(seed),
    )  # fmt: skip
    low, high = result.confidence_interval
    return Estimate(value=value, low=float(low), high=float(high)), result.bootstrap_distribution


def _weights(drawn: NDArray[np.int64]) -> Weights:
    """Return how often each speaker was drawn; both (resample, speaker)."""
    resamples, speakers = drawn.shape
    places = drawn + speakers * np.arange(resamples)[:, None]
    return np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)


def _f1_of(answers: Answers) -> Callable[[Weights], Array]:
    """Return the function from weights to macro F1 (resample,), over the languages present in each resample.

    F1 = 2 right / (named + spoken), counted per speaker and language.
    """
    _, speaker = np.unique(answers.speaker, return_inverse=True)
    right = answers.true == answers.predicted
    true, predicted = answers.true.astype(np.int32), answers.predicted.astype(np.int32)
    labels = 1 + int(max(true.max(), predicted.max()))
    rows = np.concatenate([speaker[right], speaker, speaker])
    columns = np.concatenate([true[right], predicted + labels, true + 2 * labels])
    shape = (answers.speakers, 3 * labels)
    counts = coo_array((np.ones(len(rows)), (rows, columns)), shape=shape).tocsr()  # adds up equal places

    def f1(weights: Weights) -> Array:
        right, named, spoken = np.split((counts.T @ weights.T).T, 3, axis=1)  # (resample, label) each
        present = spoken > 0
        each = np.where(present, 2 * right / np.maximum(named + spoken, 1), 0)
        return np.asarray(each.sum(axis=1) / present.sum(axis=1))

    return f1
