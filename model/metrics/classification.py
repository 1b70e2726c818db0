"""Accuracy, macro F1, and precision, recall and F1 of each language, from confusion counts."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.metrics.levels import Scores
from model.metrics.metrics_file import LabelScores


def accuracy(scores: Scores) -> float:
    """Return the fraction of the items whose language was recognised."""
    return float(np.trace(scores.confusion) / scores.confusion.sum())


def macro_f1(scores: Scores) -> float:
    """Return the mean F1 over the languages in the test split."""
    _, _, f1, support = _per_label(scores)
    return float(np.mean(f1[support > 0]))


def per_label(scores: Scores) -> dict[str, LabelScores]:
    """Return precision, recall, F1 and the number of items of each language; 0 where a figure is undefined."""
    return {
        label: LabelScores(precision=float(p), recall=float(r), f1=float(f), n=int(n))
        for label, p, r, f, n in zip(scores.labels, *_per_label(scores), strict=True)
    }


def _per_label(scores: Scores) -> tuple[NDArray[Any], ...]:
    """Return precision, recall, F1 and number of items, each (label,)."""
    from sklearn.metrics import precision_recall_fscore_support  # noqa: PLC0415 takes a second to load

    true, predicted = np.indices(scores.confusion.shape).reshape(2, -1)
    figures: tuple[NDArray[Any], ...] = precision_recall_fscore_support(
        true, predicted, labels=range(len(scores.labels)), sample_weight=scores.confusion.ravel(), zero_division=0.0
    )
    return figures
