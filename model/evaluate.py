"""The evaluate stage: how well a model names the language of speakers it has never heard."""

import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support
from upath import UPath

from model.bundle import Bundle, Description
from model.config import PromotionConfig
from model.data.store_reader import Block, Store
from model.metrics.bootstrap import CONFIDENCE, Answers, macro_f1
from model.registry.promotion import Champion, Verdict, decide
from pipeline.errors import PipelineError
from pipeline.outputs import OutputFolder
from pipeline.storage import write_atomically

EXAMPLE_S = 12.0


class IncomparableError(PipelineError):
    """A model that cannot be evaluated on this store, because it takes other features."""


@dataclass(frozen=True)
class Evaluation:
    """What a model made of the test split of a store.

    `labels` are those of the store, and after them what else the model may answer; `known` those that it was trained
    on.
    """

    store: Store
    labels: tuple[str, ...]
    known: tuple[str, ...]
    levels: tuple[str, ...]
    tally: "Tally"

    def answers(self, speaker: NDArray[np.int64]) -> Answers:
        """Return the answers a recording; `speaker` numbers the speaker of each row of the manifest, (row,)."""
        row, true, predicted = np.array(self.tally.recordings).reshape(-1, 3).T
        return Answers(true, predicted, speaker[row], len(self.store.labels))

    def metrics(self, speaker: NDArray[np.int64], seed: int) -> dict[str, Any]:
        """Return what a metrics file says."""
        answers = self.answers(speaker)
        f1 = macro_f1(answers, seed)
        interval = {"low": f1.low, "high": f1.high, "confidence": CONFIDENCE, "speakers": answers.speakers}
        levels = {level: scores(self.tally.confusion[level], self.labels) for level in self.levels}
        levels["recording"]["macro_f1_interval"] = interval
        return {
            "labels": list(self.labels),
            **levels,
            "labels_without_test": _missing(self.store, "test"),
            "labels_without_validation": _missing(self.store, "validation"),
            "example": self.tally.example,
            "store": {key: self.store.attributes[key] for key in ("config_hash", "manifest_digest")},
        }


def evaluate(
    output: OutputFolder, name: str, folder: UPath, facts: Mapping[str, Any], speaker: NDArray[np.int64], seed: int
) -> dict[str, Any]:
    """Evaluate the model in `folder` on the test split, write metrics/NAME.json and return its content.

    Per frame where the model classifies frames, per sequence (for frames: the mean log posterior over the sequence)
    and per recording (the mean log posterior over all its sequences), there with an interval, for which `speaker`
    (row,) numbers the speaker of each row of the manifest. `facts` are written in front.
    """
    metrics = {**facts, **assess(Store(str(output.store)), folder).metrics(speaker, seed)}
    write_atomically(output.metrics(name), json.dumps(metrics, indent=1, ensure_ascii=False).encode())
    return metrics


def compare(
    output: OutputFolder,
    folder: UPath,
    serving: UPath | None,
    rule: PromotionConfig,
    speaker: NDArray[np.int64],
    seed: int,
) -> tuple[Verdict, dict[str, Any]]:
    """Judge the model in `folder` against the one that serves; return the verdict and the challenger's metrics."""
    store = Store(str(output.store))
    challenger = assess(store, folder)
    answers = challenger.answers(speaker)
    champion = obstacle = None
    if serving is not None:
        try:
            champion = _champion(assess(store, serving), speaker)
        except IncomparableError as error:
            obstacle = f"{error}; it goes on serving; to begin anew, move {serving.parent} away"
    verdict = decide(answers, champion, rule, seed, store.labels, obstacle)
    return verdict, challenger.metrics(speaker, seed)


def _champion(evaluation: Evaluation, speaker: NDArray[np.int64]) -> Champion:
    answers = evaluation.answers(speaker)
    unknown = [int(i) for i in np.unique(answers.true) if evaluation.store.labels[i] not in evaluation.known]
    return Champion(answers, unknown)


def assess(store: Store, folder: UPath) -> Evaluation:
    """Run the model in `folder` over the test split of a store.

    Raises IncomparableError where it takes other features, PipelineError where the split is empty.
    """
    if not store.label_counts("test").any():
        raise PipelineError(f"{store.uri} has no valid test sequence to evaluate on; add speakers to the corpus")
    description = Description.read(folder)
    misfit = description.misfit(store)
    if misfit is not None:
        raise IncomparableError(f"{folder} was {misfit}")
    known = description.labels
    labels = (*store.labels, *(label for label in known if label not in store.labels))
    codes = np.array([labels.index(label) for label in known])
    bundle = Bundle.load(folder)
    longest = int(EXAMPLE_S / (store.timesteps * store.attributes["config"]["features"]["hop_s"]))
    tally = Tally(len(labels), max(1, longest))
    for block in store.blocks("test"):
        posteriors = bundle.log_posteriors(block.features)
        everywhere = np.full((*posteriors.shape[:2], len(labels)), -np.inf)
        everywhere[..., codes] = posteriors
        tally.add(block, everywhere)
    tally.end()
    levels = ("frame", "sequence", "recording") if description.level == "frame" else ("sequence", "recording")
    return Evaluation(store, labels, known, levels, tally)


def _missing(store: Store, split: str) -> list[str]:
    """Return the labels that have no valid sequence in `split`."""
    return [label for label, n in zip(store.labels, store.label_counts(split), strict=True) if n == 0]


@dataclass
class _OpenRecording:
    """A recording of which more sequences may come; `row` is that of the manifest."""

    row: int
    label: int
    first_sequence: int
    log_posteriors: list[NDArray[np.float64]] = field(default_factory=list)


@dataclass
class Tally:
    """Confusion counts (true label, predicted label) at each level, gathered in one pass.

    Memory does not grow but for three numbers a recording: its row of the manifest, and its true and predicted label.
    """

    labels: int
    example_sequences: int
    confusion: dict[str, NDArray[np.int64]] = field(init=False)
    recordings: "array[int]" = field(default_factory=lambda: array("q"))
    example: dict[str, Any] = field(default_factory=dict)
    _open: "_OpenRecording | None" = None

    def __post_init__(self) -> None:
        levels = ("frame", "sequence", "recording")
        self.confusion = {level: np.zeros((self.labels, self.labels), np.int64) for level in levels}

    def add(self, block: Block, posteriors: NDArray[np.float64]) -> None:
        """Count a block, whose recordings lie side by side and may go on in the next."""
        steps = posteriors.shape[1]
        self._count("frame", np.repeat(block.label, steps), posteriors.reshape(-1, self.labels))
        sequence = posteriors.mean(axis=1)  # (sequence, label)
        self._count("sequence", block.label, sequence)
        for part in _runs(block.recording):
            row = int(block.recording[part.start])
            if self._open is None or self._open.row != row:
                self.end()
                self._open = _OpenRecording(row, int(block.label[part.start]), int(block.index[part.start]))
            self._open.log_posteriors.append(sequence[part])

    def end(self) -> None:
        """Count the recording that is open."""
        if self._open is None:
            return
        recording, self._open = self._open, None
        sequence = np.concatenate(recording.log_posteriors)  # (sequence, label)
        verdict = sequence.mean(axis=0, keepdims=True)
        self._count("recording", np.array([recording.label]), verdict)
        self.recordings.extend((recording.row, recording.label, int(verdict.argmax())))
        if len(self.example.get("probabilities", ())) < len(sequence) <= self.example_sequences:
            probabilities = np.exp(sequence) / np.exp(sequence).sum(axis=1, keepdims=True)
            self.example = {
                "recording": recording.row,
                "label": recording.label,
                "first_sequence": recording.first_sequence,
                "probabilities": probabilities.round(4).tolist(),
            }

    def _count(self, level: str, label: NDArray[np.int64], log_posterior: NDArray[np.float64]) -> None:
        np.add.at(self.confusion[level], (label, log_posterior.argmax(axis=-1)), 1)


def _runs(values: NDArray[Any]) -> Iterator[slice]:
    """Yield the slices in which neighbouring values are equal."""
    edges = np.flatnonzero(np.diff(values)) + 1
    for start, stop in zip([0, *edges], [*edges, len(values)], strict=True):
        yield slice(int(start), int(stop))


def scores(confusion: NDArray[np.int64], labels: tuple[str, ...]) -> dict[str, Any]:
    """Return counts, accuracy, macro F1 and precision/recall/F1 a label for a confusion matrix (true, predicted).

    The macro F1 is over the labels that the test split holds.
    """
    true, predicted = np.indices(confusion.shape).reshape(2, -1)
    precision, recall, f1, support = precision_recall_fscore_support(
        true, predicted, labels=range(len(labels)), sample_weight=confusion.ravel(), zero_division=0.0
    )
    return {
        "n": int(confusion.sum()),
        "accuracy": float(np.trace(confusion) / confusion.sum()),
        "macro_f1": float(np.mean(f1[support > 0])),
        "confusion": confusion.tolist(),
        "per_label": {
            label: {"precision": float(p), "recall": float(r), "f1": float(f), "n": int(n)}
            for label, p, r, f, n in zip(labels, precision, recall, f1, support, strict=True)
        },
    }
