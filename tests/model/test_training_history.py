"""history.csv: what is written is read again to the last digit, and what is no history is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from model.training_history import TrainingHistory, histories_of_models
from pipeline.errors import PipelineError
from pipeline.outputs import OutputFolder

numbers = st.one_of(st.floats(allow_nan=False), st.floats(width=32, allow_nan=False))


@given(st.lists(st.tuples(numbers, numbers), min_size=1, max_size=4))
def test_a_history_is_read_as_it_was_written(values: list[tuple[float, float]]) -> None:
    rows = ({"epoch": i, "loss": loss, "wall_s": wall_s} for i, (loss, wall_s) in enumerate(values, 1))
    history = TrainingHistory(tuple(rows))
    assert TrainingHistory.parse(history.content) == history
    assert TrainingHistory.parse(history.content).content == history.content


def test_a_loss_that_is_no_number_stays_one() -> None:
    history = TrainingHistory(
        ({"epoch": 1, "loss": 0.5, "val_loss": np.nan}, {"epoch": 2, "loss": 0.4, "val_loss": 1.0})
    )
    read = TrainingHistory.parse(history.content)
    assert np.isnan(read.rows[0]["val_loss"])
    assert read.best_epoch == history.best_epoch == 2


@pytest.mark.parametrize(("content", "what"), [
    (b"", ""),
    (bytes(200), ""),
    (b'epoch,loss\n1,"0.5\n', "unexpected end of data"),
    (b"\xff\xfe", ""),
    (b"epoch,val_loss\n1,0.5\n", "there is no column epoch or loss"),
    (b"epoch,loss\n1,0.5\n2,0.x\n", "could not convert string to float: '0.x'"),
    (b"epoch,loss\n1,0.5\n3,0.4\n", "the epochs are not numbered from 1"),
    (b"epoch,loss\n1,0.5\n2,0.4,3,4\n", ""),
])  # fmt: skip
def test_what_is_no_history_is_one_line(tmp_path: Path, content: bytes, what: str) -> None:
    output = OutputFolder(UPath(tmp_path))
    file = tmp_path / "models" / "lstm" / "history.csv"
    file.parent.mkdir(parents=True)
    assert histories_of_models(output, ["lstm"]) == {}
    file.write_bytes(content)
    with pytest.raises(PipelineError) as error:
        histories_of_models(output, ["lstm"])
    assert str(error.value).startswith(f"{file} is damaged ({what}")
    assert str(error.value).endswith("); run train again")
    assert "\n" not in str(error.value)


def test_times_that_are_not_known_are_left_out_of_a_mean() -> None:
    rows = ({"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.4, "wall_s": 3.0})
    assert TrainingHistory(rows).mean("wall_s") == 3
    assert TrainingHistory(rows).mean("steps_per_s") is None
    assert TrainingHistory(rows).without_timings().rows == (rows[0], {"epoch": 2, "loss": 0.4})
