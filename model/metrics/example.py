"""The test recording that the report shows."""

from typing import Final

import numpy as np

from model.metrics.levels import starts, whole_recordings
from model.metrics.metrics_file import Example
from model.metrics.score_file import ScoreBlock, ScoreFile

MAX_EXAMPLE_S: Final = 12.0


def example(file: ScoreFile) -> Example | None:
    """Return the first of the longest recordings that are no longer than MAX_EXAMPLE_S, or None if there is none."""
    best: ScoreBlock | None = None
    for block in whole_recordings(file):
        most = max(1, int(MAX_EXAMPLE_S / block.duration_s[0]))
        first = starts(block)
        length = np.diff(first, append=len(block))  # (recording,) sequences
        length[length > most] = 0
        longest = int(length.argmax())
        if length[longest] > (0 if best is None else len(best)):
            best = block[first[longest] : first[longest] + length[longest]]
    if best is None:
        return None
    likelihood = np.exp(best.log_posterior.astype(np.float64))
    probabilities = likelihood / likelihood.sum(axis=1, keepdims=True)
    return Example(
        recording=int(best.recording[0]),
        label=int(best.label[0]),
        first_sequence=int(best.sequence[0]),
        probabilities=tuple(map(tuple, probabilities.round(4).tolist())),
    )
