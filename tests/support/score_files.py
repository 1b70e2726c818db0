"""Files of scores with known content."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike
from upath import UPath

from model.metrics import score_file
from model.metrics.score_file import ScoreBlock, ScoreFile

SEQUENCE_S = 0.2


def block(label: ArrayLike, recording: ArrayLike, posterior: ArrayLike, first: int = 0) -> ScoreBlock:  # fmt: skip
    """Return sequences with these posteriors (sequence, label), from `first` in the store."""
    count = len(np.asarray(label))
    return ScoreBlock(
        recording=np.array(recording, np.int64), speaker=np.array(recording, np.int64) % 4,
        label=np.array(label, np.int64), sequence=np.arange(first, first + count),
        start_s=np.arange(count) * SEQUENCE_S, duration_s=np.full(count, SEQUENCE_S),
        log_posterior=np.log(np.array(posterior)).astype(np.float32),
    )  # fmt: skip


def write(folder: Path, *blocks: ScoreBlock, labels: Sequence[str] = ("de", "en", "fr")) -> ScoreFile:
    """Write blocks to a file of scores."""
    path = UPath(folder) / "known.scores.parquet"
    with score_file.create(path, labels) as writer:
        for each in blocks:
            writer.add(each)
    return ScoreFile.open(path)
