"""All metrics by name. A new metric is a function in a file of its own, and one line in METRICS."""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Final

from model.metrics.classification import accuracy, macro_f1, per_label
from model.metrics.levels import Scores, ScoresNotStoredError
from model.metrics.metrics_file import LevelMetrics

Metric = Callable[[Scores], float]

METRICS: Final[dict[str, Metric]] = {
    "accuracy": accuracy,
    "macro_f1": macro_f1,
}
"""Metrics of each level in metrics/NAME.json and in the report. A metric that needs the scores of single items is left
out at the level of frames."""


def level_metrics(scores: Scores) -> LevelMetrics:
    """Return all metrics of one level, without those that are undefined (NaN) or infinite for these scores."""
    values: dict[str, float] = {}
    for name, metric in METRICS.items():
        with suppress(ScoresNotStoredError):
            value = float(metric(scores))
            if math.isfinite(value):
                values[name] = value
    return LevelMetrics.model_validate({
        "n": int(scores.confusion.sum()), **values, "confusion": scores.confusion.tolist(),
        "per_label": per_label(scores),
    })  # fmt: skip
