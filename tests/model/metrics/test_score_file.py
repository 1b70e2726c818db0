"""A file of scores: what is written in pieces is read in pieces, and an interrupted file never appears."""

import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from upath import UPath

from model.metrics import score_file
from model.metrics.score_file import ScoreBlock, ScoreFile, confusion_counts, joined
from pipeline.errors import PipelineError
from tests.support import score_files


def random_block(count: int, labels: int = 3, first: int = 0) -> ScoreBlock:
    rng = np.random.default_rng(first)
    posterior = rng.dirichlet(np.ones(labels), count)
    return score_files.block(rng.integers(0, labels, count), np.arange(count) // 3, posterior, first)


def check_equal(found: ScoreBlock, expected: ScoreBlock) -> None:
    for name, values in vars(expected).items():
        np.testing.assert_array_equal(getattr(found, name), values, name)
        assert getattr(found, name).dtype == values.dtype, name


def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_file, "ROWS_PER_GROUP", 16)
    blocks = [random_block(count, first=first) for first, count in ((0, 7), (7, 7), (14, 40), (54, 1))]
    file = score_files.write(tmp_path, *blocks)
    assert (file.labels, file.frame_confusion) == (("de", "en", "fr"), None)
    read = list(file.blocks())
    assert max(map(len, read)) == 16
    check_equal(joined(read), joined(blocks))


def test_a_label_that_the_model_does_not_have_is_never_predicted(tmp_path: Path) -> None:
    with np.errstate(divide="ignore"):
        known = score_files.block([2, 0], [0, 1], [[0.5, 0.5, 0.0], [0.4, 0.6, 0.0]])
    (found,) = score_files.write(tmp_path, known).blocks()
    assert found.log_posterior[:, 2].tolist() == [-np.inf, -np.inf]
    assert found.predicted.tolist() == [0, 1]


def test_other_programs_read_the_columns(tmp_path: Path) -> None:
    file = score_files.write(tmp_path, random_block(5), labels=("süd west", "日本", "$x$"))
    table = parquet.read_table(str(file.path))
    assert table.column_names == [
        "recording", "speaker", "label", "sequence", "start_s", "duration_s", "log_posterior",
    ]  # fmt: skip
    assert table.schema.field("log_posterior").type == pa.list_(pa.float32(), 3)
    assert ScoreFile.open(file.path).labels == ("süd west", "日本", "$x$")
    np.testing.assert_allclose(np.exp(table.to_pandas()["log_posterior"].tolist()).sum(axis=1), 1, rtol=1e-6)


def test_frames_are_counted_over_all_blocks(tmp_path: Path) -> None:
    path = UPath(tmp_path) / "frames.parquet"
    blocks = [random_block(5), random_block(2, first=5)]
    frames = [np.arange(10).reshape(5, 2) % 3, np.array([[2, 2], [0, 1]])]
    with score_file.create(path, ("a", "b", "c")) as writer:
        for block, predicted in zip(blocks, frames, strict=True):
            writer.add(block, predicted)
    found = ScoreFile.open(path).frame_confusion
    assert found is not None
    true = np.repeat(np.concatenate([block.label for block in blocks]), 2)
    assert found.tolist() == confusion_counts(true, np.concatenate([f.ravel() for f in frames]), 3).tolist()
    assert found.sum() == 14


def test_confusion_counts_by_hand() -> None:
    assert confusion_counts(np.array([0, 0, 1]), np.array([1, 1, 0]), 3).tolist() == [[0, 2, 0], [1, 0, 0], [0, 0, 0]]


def test_an_interrupted_file_does_not_replace_the_last_one(tmp_path: Path) -> None:
    file = score_files.write(tmp_path, random_block(5))
    before = file.path.read_bytes()

    def interrupted() -> None:
        with score_file.create(file.path, ("a", "b", "c")) as writer:
            writer.add(random_block(3))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert file.path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [file.path.name]


def test_a_file_behind_a_url(memory_url: str) -> None:
    path = UPath(memory_url) / "metrics" / "known.scores.parquet"
    with score_file.create(path, ("a", "b", "c")) as writer:
        writer.add(random_block(5))
    check_equal(joined(list(ScoreFile.open(path).blocks())), random_block(5))


def test_memory_does_not_depend_on_the_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_file, "ROWS_PER_GROUP", 1024)
    block = random_block(1024)

    def peak_bytes(blocks: int) -> int:
        file = score_files.write(tmp_path, *[block] * blocks)
        tracemalloc.start()
        arrow = 0
        for _ in file.blocks():
            arrow = max(arrow, pa.total_allocated_bytes())
        peak = tracemalloc.get_traced_memory()[1] + arrow
        tracemalloc.stop()
        return peak

    assert peak_bytes(40) < 1.5 * peak_bytes(4)


@pytest.mark.parametrize(("content", "reason"), [
    (None, "is missing"), (b"", "is damaged"), (b"PAR1 no table", "is damaged"),
])  # fmt: skip
def test_what_is_no_file_of_scores_is_refused_in_one_line(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = UPath(tmp_path) / "x.scores.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PipelineError, match=f"{path} {reason}; run evaluate again"):
        ScoreFile.open(path)


def test_a_table_of_something_else_is_refused(tmp_path: Path) -> None:
    path = UPath(tmp_path) / "x.scores.parquet"
    parquet.write_table(pa.table({"a": [1]}), str(path))
    with pytest.raises(PipelineError, match="is damaged; run evaluate again"):
        ScoreFile.open(path)
