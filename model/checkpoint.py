"""The state of a training after each epoch, from which an interrupted training continues."""

import io
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass

import keras
import numpy as np
import pandas as pd
from upath import UPath

from model.bundle import NETWORK, load_model, model_bytes
from model.step_clock import StepClock
from pipeline.storage import write_atomically

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingHistory:
    """The finished epochs of a training: one row per epoch, with the columns of history.csv."""

    rows: tuple[Mapping[str, float], ...] = ()

    @classmethod
    def read(cls, file: UPath) -> "TrainingHistory":
        """Read history.csv; a missing file has no epochs."""
        if not file.exists():
            return cls()
        records = pd.read_csv(io.BytesIO(file.read_bytes())).to_dict("records")
        return cls(tuple({str(name): value for name, value in row.items()} for row in records))

    def write(self, file: UPath) -> None:
        """Write history.csv."""
        write_atomically(file, pd.DataFrame(self.rows).to_csv(index=False).encode())

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

    def mean(self, column: str) -> float:
        """Return the mean of a column over the epochs."""
        return float(np.mean([row[column] for row in self.rows]))


@dataclass(frozen=True)
class CheckpointFolder:
    """The files of one training in the folder of its model.

    history.csv is written last and determines which epochs are finished. A kill between two writes repeats one epoch.
    """

    folder: UPath

    @property
    def _key(self) -> UPath:
        return self.folder / "checkpoints" / "key.txt"

    @property
    def _history(self) -> UPath:
        return self.folder / "history.csv"

    def _state(self, epoch: int) -> UPath:
        """Return the file of the model and its optimiser after `epoch` epochs."""
        return self.folder / "checkpoints" / f"epoch-{epoch:04d}.keras"

    def resume(self, key: str) -> TrainingHistory:
        """Return the finished epochs of the training with this `key`; remove the files of another training."""
        if self._key.exists() and self._key.read_text() == key:
            return TrainingHistory.read(self._history)
        if self.folder.exists():
            log.info("train %s: data or settings have changed, training starts again", self.folder.name)
            self.folder.fs.rm(self.folder.path, recursive=True)
        write_atomically(self._key, key.encode())
        return TrainingHistory()

    def load(self, history: TrainingHistory) -> keras.Model | None:
        """Return the model and its optimiser after the last finished epoch, or None before the first."""
        if not history.epochs:
            return None
        log.info("train %s: continuing after epoch %d", self.folder.name, history.epochs)
        return load_model(self._state(history.epochs))

    def save(self, model: keras.Model, history: TrainingHistory) -> None:
        """Save the state after the last epoch of `history`; keep the model as model.keras if it is the best so far."""
        content, current = model_bytes(model), self._state(history.epochs)
        write_atomically(current, content)
        if history.epochs == (history.best_epoch or 1):
            write_atomically(self.folder / NETWORK, content)
        history.write(self._history)
        for state in current.parent.glob("epoch-*.keras"):
            if state.name != current.name:
                state.unlink()


class EpochEnd(keras.callbacks.Callback):  # type: ignore[misc]  # keras has no types
    """Records each epoch, saves it, and stops the training once it has stalled for `patience` epochs."""

    def __init__(self, files: CheckpointFolder, history: TrainingHistory, clock: StepClock, patience: int) -> None:
        super().__init__()
        self._files, self._clock, self._patience = files, clock, patience
        self._started_s = 0.0
        self.history = history

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Start the clocks."""
        self._started_s = time.perf_counter()
        self._clock.start()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Record, save and log the epoch; `epoch` counts from 0."""
        wall_s = time.perf_counter() - self._started_s
        row = {"epoch": epoch + 1, **(logs or {}), "wall_s": wall_s, **self._clock.timings()}
        self.history = TrainingHistory((*self.history.rows, row))
        self._files.save(self.model, self.history)
        self.model.stop_training = self.history.stalled(self._patience)
        values = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        log.info("train %s: %s", self._files.folder.name, values)
