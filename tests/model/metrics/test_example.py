"""The example of the report: the first of the longest recordings that are short enough."""

from pathlib import Path

import numpy as np
import pytest

from model.metrics import example as example_module
from model.metrics import score_file
from model.metrics.example import example
from tests.support import score_files


@pytest.mark.parametrize("rows", [2, 5, 100])
def test_the_first_of_the_longest_recordings_that_are_short_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    monkeypatch.setattr(score_file, "ROWS_PER_GROUP", rows)
    monkeypatch.setattr(example_module, "MAX_EXAMPLE_S", 3 * score_files.SEQUENCE_S)
    lengths = {4: 1, 6: 4, 2: 3, 9: 3, 1: 2}
    recording = [row for row, length in lengths.items() for _ in range(length)]
    label = [row % 3 for row in recording]
    posterior = np.random.default_rng(0).dirichlet([1, 1, 1], len(label))
    found = example(score_files.write(tmp_path, score_files.block(label, recording, posterior.tolist(), first=100)))
    assert found is not None
    assert (found.recording, found.label, found.first_sequence) == (2, 2, 105)
    np.testing.assert_allclose(found.probabilities, posterior[5:8], atol=5e-5)


def test_without_a_recording_that_is_short_enough_there_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example_module, "MAX_EXAMPLE_S", score_files.SEQUENCE_S)
    assert example(score_files.write(tmp_path, score_files.block([0, 0], [1, 1], [[0.5, 0.3, 0.2]] * 2))) is None
