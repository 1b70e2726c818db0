"""The report's sections on trained models: their comparison, learning curves, confusions, and one example."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from pipeline.report import plots
from pipeline.report.results import Pictures, Results
from pipeline.run_record import TrainRecord
from pipeline.store import feature_store, records

if TYPE_CHECKING:
    from model.metrics.metrics_file import LabelScores, LevelMetrics, Metrics

LEVELS: Final = ("frame", "sequence", "recording")
CONFUSION_LEVELS: Final = ("sequence", "recording")
HEADINGS: Final[Mapping[str, str]] = {"macro_f1": "macro F1"}
"""Headings of metrics; others are headed by their name without underscores."""
PERCENT: Final = ("accuracy",)
"""Metrics that are shown as percentages."""


@dataclass(frozen=True)
class Training:
    """One model's training; the best epoch counts from 1, and is None if the loss was never finite."""

    name: str
    epochs: int
    facts: TrainRecord | None


def trainings(results: Results, pictures: Pictures) -> list[Training]:
    """Return the trainings, and draw their learning curves."""
    rows, curves = [], []
    for name, history in results.histories.items():
        facts = results.stages.get(f"train/{name}")
        row = Training(name, len(history), facts if isinstance(facts, TrainRecord) else None)
        level = "frame" if name in results.metrics and results.metrics[name].frame else "sequence"
        title = f"{plots.short(name)}, per {level}"
        curves.append(plots.LearningCurve(title, history, row.facts.best_epoch if row.facts else None))
        rows.append(row)
    if rows:
        pictures.add("curves", plots.learning_curves(curves))
    return rows


@dataclass(frozen=True)
class ComparisonSection:
    """The metrics of all models at each level, beside chance and always naming the most frequent test language.

    `columns` has the names of the metrics of each level. `most_frequent` has the most frequent language of each level,
    or several, and the accuracy of always naming it. `best` is the most accurate model per sequence.
    """

    columns: Mapping[str, Sequence[str]]
    rows: Sequence[tuple[str, Sequence["LevelMetrics | None"]]]
    chance: float
    most_frequent: Mapping[str, tuple[str, float]]
    best: str
    metrics: Mapping[str, "Metrics"]

    @property
    def best_metrics(self) -> "Metrics":
        """The metrics of the best model."""
        return self.metrics[self.best]


def comparison(results: Results, pictures: Pictures) -> ComparisonSection | None:
    """Return the comparison of the models, and draw it; None if no model has been evaluated."""
    if not results.metrics:
        return None
    models = {name: metrics.levels for name, metrics in results.metrics.items()}
    found = {level: [levels[level] for levels in models.values() if level in levels] for level in LEVELS}
    levels = [level for level in LEVELS if found[level]]
    accuracy = {name: [each[level].accuracy if level in each else np.nan for level in levels]
                for name, each in models.items()}  # fmt: skip
    best = max(results.metrics, key=lambda name: results.metrics[name].sequence.accuracy)
    chance = 1 / len(results.metrics[best].labels)
    pictures.add("comparison", plots.comparison(pd.DataFrame(accuracy, index=levels), chance))
    return ComparisonSection(
        columns={level: list(dict.fromkeys(n for each in found[level] for n in each.values)) for level in levels},
        rows=[(name, [each.get(level) for level in levels]) for name, each in models.items()],
        chance=chance,
        most_frequent={level: _most_frequent(found[level][0]) for level in levels},
        best=best,
        metrics=results.metrics,
    )


def _most_frequent(metrics: "LevelMetrics") -> tuple[str, float]:
    n = pd.Series({label: scores.n for label, scores in metrics.per_label.items()})
    return ", ".join(n.index[n == n.max()]), float(n.max() / metrics.n)


def heading(metric: str) -> str:
    """Return the heading of a metric's column."""
    return HEADINGS.get(metric, metric.replace("_", " "))


def value(metrics: "LevelMetrics | None", metric: str) -> str | None:
    """Return a metric as text, or None if it was not computed."""
    found = None if metrics is None else metrics.values.get(metric)
    if found is None:
        return None
    return plots.percent(found) if metric in PERCENT else f"{found:.3f}"


@dataclass(frozen=True)
class Confusions:
    """One model's confusion matrices, as (picture, level), and the scores of each language at these levels."""

    name: str
    pictures: Sequence[tuple[str, str]]
    per_label: Sequence[tuple[str, Sequence["LabelScores"]]]
    wide: bool


def confusions(results: Results, pictures: Pictures) -> list[Confusions]:
    """Return the scores of each model per language, and draw its confusion matrices."""
    rows = []
    for name, metrics in results.metrics.items():
        levels = {level: metrics.levels[level] for level in CONFUSION_LEVELS}
        for level, found in levels.items():
            title = f"{plots.short(name)}, per {level} (n = {found.n:,})"
            picture = plots.confusion(np.array(found.confusion, np.int64), metrics.labels, title)
            pictures.add(f"confusion_{name}_{level}", picture)
        rows.append(Confusions(
            name=name, pictures=[(f"confusion_{name}_{level}", level) for level in levels],
            per_label=[(label, [found.per_label[label] for found in levels.values()]) for label in metrics.labels],
            wide=len(metrics.labels) > plots.MAX_LABELS_SMALL,
        ))  # fmt: skip
    return rows


@dataclass(frozen=True)
class ExampleSection:
    """One test recording, its language, and the mean probability that a model gives this language."""

    model: str
    recording: str
    label: str
    probability: float


def example(results: Results, pictures: Pictures) -> ExampleSection | None:
    """Return one test recording, and draw its features above the probabilities that a model assigns.

    The model is the most accurate sequence model; without one, the most accurate frame model. Returns None if there is
    no example, or if the store does not have its features any more.
    """
    with_example = {name: metrics for name, metrics in results.metrics.items() if metrics.example}
    if not with_example or results.hop_s is None:
        return None
    name = max(with_example, key=lambda name: (not with_example[name].frame, with_example[name].sequence.accuracy))
    metrics, found = with_example[name], with_example[name].example
    stored = records.read_attributes(results.output)
    if found is None or stored is None or metrics.store.manifest_digest != stored.manifest_digest:
        return None  # these sequences may be those of another recording now
    probabilities = np.array(found.probabilities)
    first = found.first_sequence
    features = feature_store.read_features(results.output, first, first + len(probabilities))
    if np.isnan(features).any():  # the recording has been masked
        return None
    recording, label = results.manifest.names([found.recording]), metrics.labels[found.label]
    colors = plots.language_colors(list(dict.fromkeys([*results.labels, *metrics.labels])))
    title = f"{plots.short(recording, 60)}, spoken language: {plots.short(label)}"
    pictures.add(
        "example", plots.example(features, probabilities, metrics.labels, found.label, colors, results.hop_s, title)
    )
    return ExampleSection(name, recording, label, float(probabilities.mean(axis=0)[found.label]))
