"""The evaluate stage: the scores of a model on the test speakers, and the metrics computed from them."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from upath import UPath

from model.bundle import Bundle, Description
from model.config import PromotionConfig
from model.data.store_reader import Block, Store
from model.metrics import levels, score_file
from model.metrics.bootstrap import CONFIDENCE, Answers, macro_f1
from model.metrics.example import example
from model.metrics.metrics_file import Interval, Metrics
from model.metrics.score_file import ScoreBlock, ScoreFile
from model.metrics.scores import level_metrics
from model.registry.history import Comparison
from model.registry.promotion import Champion, decide
from pipeline.errors import PipelineError
from pipeline.outputs import OutputFolder

START_FRAME: Final = "start_frame"


class Speakers(Protocol):
    """A number for the speaker of each test recording, equal for all recordings of a speaker."""

    def __getitem__(self, rows: NDArray[np.integer[Any]], /) -> NDArray[np.int64]:
        """Return the numbers for some rows of the manifest: (row,) int64."""
        ...


class IncomparableError(PipelineError):
    """A model that cannot be evaluated on this store, because it was trained on other features."""


@dataclass(frozen=True)
class EvaluationData:
    """The test split of a store, and the speakers of its recordings."""

    store: Store
    speaker: Speakers
    seed: int

    @classmethod
    def of(cls, output: OutputFolder, speaker: Speakers, seed: int) -> "EvaluationData":
        """Open the store of an output folder; raises PipelineError if its test split is empty."""
        store = Store(str(output.store), extra=[START_FRAME])
        if not store.label_counts("test").any():
            raise PipelineError(f"{store.uri} has no valid test sequence to evaluate on; add speakers to the corpus")
        return cls(store, speaker, seed)


def evaluate(
    output: OutputFolder,
    name: str,
    folder: UPath,
    facts: Mapping[str, Any],
    speaker: Speakers,
    seed: int,
    results: OutputFolder | None = None,
) -> Metrics:
    """Evaluate the model in `folder` on the test split of `output`.

    Write metrics/NAME.scores.parquet and metrics/NAME.json to `results`, by default to `output`. `facts` are fields of
    the metrics; `speaker` is for the interval of the macro F1 per recording. Raises IncomparableError for a model of
    other features, and PipelineError if the test split is empty.
    """
    results = results or output
    data = EvaluationData.of(output, speaker, seed)
    metrics = summary(write_scores(data, folder, results.scores(name)), data, facts)
    metrics.write(results.metrics(name))
    return metrics


def compare(
    output: OutputFolder,
    folder: UPath,
    champion_folder: UPath | None,
    rule: PromotionConfig,
    speaker: Speakers,
    seed: int,
) -> tuple[Comparison, Metrics]:
    """Compare the model in `folder` with the champion on the test split; also return the metrics of the model."""
    data = EvaluationData.of(output, speaker, seed)
    with tempfile.TemporaryDirectory() as scratch:
        scores = write_scores(data, folder, UPath(scratch) / "challenger.parquet")
        champion = obstacle = None
        if champion_folder is not None:
            try:
                champion = _champion(data, champion_folder, UPath(scratch) / "champion.parquet")
            except IncomparableError as error:
                obstacle = f"{error}; it stays in service; to start again, move {champion_folder.parent} away"
        answers = Answers.of(levels.recordings(scores))
        comparison = decide(answers, champion, rule, seed, data.store.labels, obstacle)
        return comparison, summary(scores, data, {})


def _champion(data: EvaluationData, folder: UPath, path: UPath) -> Champion:
    answers = Answers.of(levels.recordings(write_scores(data, folder, path)))
    labels, known = data.store.labels, Description.read(folder).labels
    return Champion(answers, [int(code) for code in np.unique(answers.true) if labels[code] not in known])


def write_scores(data: EvaluationData, folder: UPath, path: UPath) -> ScoreFile:
    """Run the model in `folder` over the test split and write its scores to `path`.

    Memory does not depend on the size of the split. Raises IncomparableError if the model does not fit the store.
    """
    description = Description.read(folder)
    misfit = description.misfit(data.store)
    if misfit is not None:
        raise IncomparableError(f"{folder} was {misfit}")
    bundle = Bundle.load(folder)
    known, store = description.labels, data.store
    labels = (*store.labels, *(label for label in known if label not in store.labels))
    codes = [labels.index(label) for label in known]
    with score_file.create(path, labels) as scores:
        for block in store.blocks("test"):
            found = bundle.log_posteriors(block.features)  # (sequence, step, label of the model)
            steps = np.full((*found.shape[:2], len(labels)), -np.inf)
            steps[..., codes] = found
            frames = steps.argmax(axis=-1) if description.level == "frame" else None
            scores.add(_score_block(data, block, steps.mean(axis=1)), frames)
    return ScoreFile.open(path)


def _score_block(data: EvaluationData, block: Block, log_posterior: NDArray[np.float64]) -> ScoreBlock:
    hop_s = data.store.attributes["config"]["features"]["hop_s"]
    return ScoreBlock(
        recording=block.recording.astype(np.int64),
        speaker=data.speaker[block.recording],
        label=block.label,
        sequence=block.index,
        start_s=block.extra[START_FRAME] * hop_s,
        duration_s=np.full(len(block), data.store.timesteps * hop_s),
        log_posterior=log_posterior.astype(np.float32),
    )


def summary(scores: ScoreFile, data: EvaluationData, facts: Mapping[str, Any]) -> Metrics:
    """Return the metrics of a file of scores."""
    recordings = levels.recordings(scores)
    answers = Answers.of(recordings)
    f1 = macro_f1(answers, data.seed)
    interval = Interval(low=f1.low, high=f1.high, confidence=CONFIDENCE, speakers=answers.speakers)
    frames = levels.frames(scores)
    return Metrics.model_validate({
        **facts,
        "labels": scores.labels,
        **({} if frames is None else {"frame": level_metrics(frames)}),
        "sequence": level_metrics(levels.sequences(scores)),
        "recording": level_metrics(recordings).model_copy(update={"macro_f1_interval": interval}),
        "labels_without_test": _labels_without(data.store, "test"),
        "labels_without_validation": _labels_without(data.store, "validation"),
        "example": example(scores),
        "store": {key: data.store.attributes[key] for key in ("config_hash", "manifest_digest")},
    })  # fmt: skip


def _labels_without(store: Store, split: str) -> tuple[str, ...]:
    """Return the labels that have no valid sequence in `split`."""
    return tuple(label for label, n in zip(store.labels, store.label_counts(split), strict=True) if n == 0)
