"""The three levels: a recording is decided by the mean log posterior, however its sequences are read."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from model.metrics import levels, score_file
from model.metrics.bootstrap import Answers
from model.metrics.levels import ScoresNotStoredError
from model.metrics.score_file import joined
from tests.support import score_files


def test_a_recording_is_decided_by_the_mean_log_posterior(tmp_path: Path) -> None:
    posterior = [[0.60, 0.39, 0.01], [0.60, 0.39, 0.01], [0.001, 0.3, 0.699]]
    assert np.mean(posterior, axis=0).argmax() == 0  # as for the majority of the sequences
    file = score_files.write(tmp_path, score_files.block([2, 2, 2], [5, 5, 5], posterior))
    assert levels.sequences(file).confusion.tolist() == [[0, 0, 0], [0, 0, 0], [2, 0, 1]]
    assert levels.recordings(file).confusion.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]


def test_a_recording_continues_from_block_to_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_file, "ROWS_PER_GROUP", 2)
    # alone, its first two sequences and its last two would each be another language's
    certain, other = [0.98, 0.01, 0.01], [0.30, 0.69, 0.01]
    posterior = [other, certain, other, other, other]
    file = score_files.write(tmp_path, score_files.block([1, 0, 0, 0, 2], [8, 7, 7, 7, 9], posterior, first=10))
    recordings = levels.recordings(file)
    assert recordings.confusion.tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]
    found = joined(list(recordings.blocks()))
    assert found.recording.tolist() == [8, 7, 9]
    assert found.sequence.tolist() == [10, 11, 14]
    assert found.start_s.tolist() == pytest.approx([0.0, 0.2, 0.8])
    assert found.duration_s.tolist() == pytest.approx([0.2, 0.6, 0.2])
    np.testing.assert_allclose(found.log_posterior[1], np.log([certain, other, other]).mean(axis=0), rtol=1e-6)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=12), rows=st.integers(1, 9))
def test_recordings_do_not_depend_on_how_the_file_is_cut(tmp_path: Path, lengths: list[int], rows: int) -> None:
    recording = np.repeat(np.arange(len(lengths)), lengths)
    posterior = np.random.default_rng(sum(lengths)).dirichlet(np.ones(3), len(recording))
    sequences = score_files.block(recording % 3, recording, posterior)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_file, "ROWS_PER_GROUP", rows)
        file = score_files.write(tmp_path, sequences)
        found = Answers.of(levels.recordings(file))
    expected = [sequences.log_posterior[recording == row].astype(float).mean(axis=0).argmax()
                for row in range(len(lengths))]  # fmt: skip
    assert found.predicted.tolist() == expected
    assert found.true.tolist() == (np.arange(len(lengths)) % 3).tolist()
    assert found.speaker.tolist() == (np.arange(len(lengths)) % 4).tolist()


def test_frames_have_counts_and_no_scores(tmp_path: Path) -> None:
    file = score_files.write(tmp_path, score_files.block([0], [0], [[0.5, 0.3, 0.2]]))
    assert levels.frames(file) is None
    with score_file.create(file.path, file.labels) as writer:
        writer.add(score_files.block([0], [0], [[0.5, 0.3, 0.2]]), np.array([[0, 0, 1]]))
    frames = levels.frames(score_file.ScoreFile.open(file.path))
    assert frames is not None
    assert frames.confusion.tolist() == [[2, 1, 0], [0, 0, 0], [0, 0, 0]]
    with pytest.raises(ScoresNotStoredError):
        next(frames.blocks())
