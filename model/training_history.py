"""history.csv: the finished epochs of a training, and which of them is the best."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from upath import UPath

from pipeline.errors import PipelineError, in_one_line
from pipeline.outputs import OutputFolder

HISTORY: Final = "history.csv"

TIMINGS: Final = ("wall_s", "steps_per_s", "input_wait")
"""Columns that differ between equal trainings."""


@dataclass(frozen=True)
class TrainingHistory:
    """The finished epochs of a training: one row per epoch, with the columns of history.csv."""

    rows: tuple[Mapping[str, float], ...] = ()

    @classmethod
    def parse(cls, content: bytes) -> "TrainingHistory":
        """Return the epochs in the content of a history.csv; raises ValueError for other content."""
        try:
            columns, *rows = csv.reader(io.StringIO(content.decode()), strict=True)
            epochs = tuple(dict(zip(columns, map(_number, row), strict=True)) for row in rows)
        except csv.Error as error:
            raise ValueError(error) from None
        if not {"epoch", "loss"} <= set(columns):
            raise ValueError("there is no column epoch or loss")
        if [row["epoch"] for row in epochs] != list(range(1, len(epochs) + 1)):
            raise ValueError("the epochs are not numbered from 1")
        return cls(epochs)

    @classmethod
    def read(cls, file: UPath) -> "TrainingHistory":
        """Read a history.csv; raises PipelineError if it is damaged."""
        content = file.read_bytes()
        try:
            return cls.parse(content)
        except ValueError as error:
            raise PipelineError(f"{file} is damaged ({in_one_line(error)}); run train again") from None

    @property
    def table(self) -> pd.DataFrame:
        """The epochs as a table."""
        return pd.DataFrame(self.rows)

    @property
    def content(self) -> bytes:
        """The content of history.csv."""
        return self.table.to_csv(index=False).encode()

    @property
    def epochs(self) -> int:
        """The number of finished epochs."""
        return len(self.rows)

    @property
    def best_epoch(self) -> int | None:
        """The epoch, from 1, with the smallest finite validation loss; the training loss where nothing validates."""
        losses = np.array([row.get("val_loss", row["loss"]) for row in self.rows])
        if not np.isfinite(losses).any():
            return None
        return 1 + int(np.argmin(np.where(np.isfinite(losses), losses, np.inf)))

    def stalled(self, patience: int) -> bool:
        """Whether no epoch was better than the best (without one: than the first) for `patience` epochs."""
        return self.epochs - (self.best_epoch or 1) >= patience

    def mean(self, column: str) -> float | None:
        """Return the mean of a column over the epochs in which it is known, or None."""
        known = [row[column] for row in self.rows if np.isfinite(row.get(column, np.nan))]
        return float(np.mean(known)) if known else None

    def without_timings(self) -> "TrainingHistory":
        """Return the history without the columns that differ between equal trainings."""
        return TrainingHistory(
            tuple({name: value for name, value in row.items() if name not in TIMINGS} for row in self.rows)
        )


def histories_of_models(output: OutputFolder, models: Iterable[str]) -> dict[str, pd.DataFrame]:
    """Return the epochs of those `models` that have been trained; raises PipelineError for a damaged file."""
    files = {name: output.model(name) / HISTORY for name in models}
    return {name: TrainingHistory.read(file).table for name, file in files.items() if file.exists()}


def _number(text: str) -> float:
    """Return an integer for digits, otherwise a float: to its last digit, which pandas does not promise."""
    return int(text) if text.isdecimal() else float(text or "nan")
