"""The scores of a model at three levels: per frame, per sequence and per recording."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from model.metrics.score_file import ScoreBlock, ScoreFile, confusion_counts, joined


class ScoresNotStoredError(Exception):
    """A metric needs the scores of single frames, which are not stored."""


@dataclass(frozen=True)
class Scores:
    """The scores of all items of one level: what a metric is computed from.

    `labels` are the languages in the order of their codes. `confusion` (true label, predicted label) int64 counts
    items. `blocks` iterates over the items, and raises ScoresNotStoredError for frames; a metric that uses it must not
    collect all items, of which there may be more than fit in memory.
    """

    labels: tuple[str, ...]
    confusion: NDArray[np.int64]
    blocks: Callable[[], Iterator[ScoreBlock]]


def frames(file: ScoreFile) -> Scores | None:
    """Return the scores of single frames, or None if the model classifies sequences."""

    def blocks() -> Iterator[ScoreBlock]:
        raise ScoresNotStoredError

    return None if file.frame_confusion is None else Scores(file.labels, file.frame_confusion, blocks)


def sequences(file: ScoreFile) -> Scores:
    """Return the scores of sequences; for a model of frames, the mean log posterior over the frames."""
    return _counted(file, file.blocks)


def recordings(file: ScoreFile) -> Scores:
    """Return the scores of recordings: the mean log posterior over the sequences."""

    def blocks() -> Iterator[ScoreBlock]:
        return (_per_recording(block) for block in whole_recordings(file))

    return _counted(file, blocks)


def whole_recordings(file: ScoreFile) -> Iterator[ScoreBlock]:
    """Yield all sequences in blocks that cut no recording."""
    rest: ScoreBlock | None = None
    for block in file.blocks():
        known = block if rest is None else joined([rest, block])
        last = int(starts(known)[-1])  # this recording may continue in the next block
        if last:
            yield known[:last]
        rest = known[last:]
    if rest is not None:
        yield rest


def starts(block: ScoreBlock) -> NDArray[np.int64]:
    """Return the position in a block of the first sequence of each recording: (recording,) int64."""
    return np.flatnonzero(np.diff(block.recording, prepend=-1))


def _per_recording(block: ScoreBlock) -> ScoreBlock:
    """Return one item per recording for the sequences of whole recordings."""
    first = starts(block)
    count = np.diff(first, append=len(block))
    total = np.add.reduceat(block.log_posterior.astype(np.float64), first, axis=0)
    items = ScoreBlock(**{name: values[first] for name, values in vars(block).items()})
    return replace(
        items,
        duration_s=np.add.reduceat(block.duration_s, first),
        log_posterior=(total / count[:, None]).astype(np.float32),
    )


def _counted(file: ScoreFile, blocks: Callable[[], Iterator[ScoreBlock]]) -> Scores:
    n = len(file.labels)
    counts = np.zeros((n, n), np.int64)
    for block in blocks():
        counts += confusion_counts(block.label, block.predicted, n)
    return Scores(file.labels, counts, blocks)
