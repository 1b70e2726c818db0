"""Metrics by name: known values, and a further metric that appears wherever metrics do."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from model.metrics.levels import Scores, ScoresNotStoredError
from model.metrics.score_file import ScoreBlock
from model.metrics.scores import METRICS, level_metrics

LABELS = ("de", "en", "fr")


def counted(confusion: NDArray[np.int64]) -> Scores:
    """Scores of frames: counts alone."""

    def blocks() -> Iterator[ScoreBlock]:
        raise ScoresNotStoredError

    return Scores(LABELS, confusion, blocks)


@pytest.mark.parametrize(("confusion", "expected"), [
    (np.diag([3, 4, 5]), 1.0), (np.roll(np.diag([3, 4, 5]), 1, axis=1), 0.0),
])  # fmt: skip
def test_a_perfect_model_and_one_that_is_always_wrong(confusion: NDArray[np.int64], expected: float) -> None:
    found = level_metrics(counted(confusion))
    assert (found.n, found.accuracy, found.macro_f1) == (12, expected, expected)
    assert [found.per_label[label].recall for label in LABELS] == [expected] * 3


def test_values_computed_by_hand() -> None:
    # de: 3 right of 4, 1 taken for it; en: 1 right of 2, 1 taken for it; nobody speaks fr
    found = level_metrics(counted(np.array([[3, 1, 0], [1, 1, 0], [0, 0, 0]])))
    assert found.accuracy == pytest.approx(4 / 6)
    assert found.macro_f1 == pytest.approx((3 / 4 + 1 / 2) / 2)
    assert found.per_label["de"].model_dump() == {"precision": 0.75, "recall": 0.75, "f1": 0.75, "n": 4}
    assert found.per_label["fr"].model_dump() == {"precision": 0, "recall": 0, "f1": 0, "n": 0}


def test_a_further_metric_has_its_name_and_needs_no_other_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METRICS, "balanced_accuracy", lambda scores: scores.confusion.trace() / 100)
    monkeypatch.setitem(METRICS, "of_single_items", lambda scores: len(list(scores.blocks())))
    found = level_metrics(counted(np.diag([3, 4, 5])))
    # counts are all that there is of frames
    assert found.values == {"accuracy": 1.0, "macro_f1": 1.0, "balanced_accuracy": 0.12}
    assert found.model_dump(exclude_unset=True)["balanced_accuracy"] == 0.12
