"""The state of a training after each epoch, from which an interrupted training continues."""

import io
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass

import keras
import numpy as np
import pandas as pd
from upath import UPath

from model.bundle import FILES, NETWORK, Description, load_model, model_bytes
from model.step_clock import Advance, StepClock
from pipeline.storage import write_atomically

HISTORY = "history.csv"

Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""Shows the progress of a title in a number of steps, while its context is open."""

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

    A model of other data or settings stays in the folder until the first epoch with a finite loss is saved. Its files
    are then replaced one by one. Meanwhile key.txt is missing, so that neither training continues from a mixture.
    Later, history.csv is written last and determines which epochs are finished: a kill between two writes repeats one
    epoch.

    `key` identifies data and settings. `replacing` is called before the first file of another training is replaced.
    """

    folder: UPath
    key: str
    description: Description
    replacing: Callable[[], None]

    @property
    def _key(self) -> UPath:
        return self.folder / "checkpoints" / "key.txt"

    @property
    def _history(self) -> UPath:
        return self.folder / HISTORY

    def _state(self, epoch: int) -> UPath:
        """Return the file of the model and its optimiser after `epoch` epochs."""
        return self.folder / "checkpoints" / f"epoch-{epoch:04d}.keras"

    def finished(self) -> TrainingHistory:
        """Return the finished epochs of the training with this key; none if a file of it is missing."""
        if not self._key.exists() or self._key.read_text() != self.key:
            return TrainingHistory()
        history = TrainingHistory.read(self._history)
        needed = [*(self.folder / name for name in FILES), self._state(history.epochs)]
        return history if all(path.exists() for path in needed) else TrainingHistory()

    def load(self, history: TrainingHistory) -> keras.Model | None:
        """Return the model and its optimiser after the last finished epoch, or None before the first."""
        if history.epochs:
            log.info("train %s: continuing after epoch %d", self.folder.name, history.epochs)
            return load_model(self._state(history.epochs))
        if self.has_model():
            log.info(
                "train %s: data or settings have changed, training starts again; the present model stays until the "
                "first epoch is finished", self.folder.name,
            )  # fmt: skip
        return None

    def has_model(self) -> bool:
        """Whether there is a model, of this training or of an earlier one."""
        return (self.folder / NETWORK).exists()

    def save(self, model: keras.Model, history: TrainingHistory) -> None:
        """Save the state after the last epoch of `history`; keep the model as model.keras if it is the best so far.

        Nothing is saved until an epoch has a finite loss.
        """
        if history.best_epoch is None:
            return
        content, first = model_bytes(model), not self.finished().epochs
        if first:
            self.replacing()
            self._key.unlink(missing_ok=True)
        current = self._state(history.epochs)
        write_atomically(current, content)
        if first:
            self.description.write(self.folder)
        if history.epochs == history.best_epoch:
            write_atomically(self.folder / NETWORK, content)
        history.write(self._history)
        for state in current.parent.glob("epoch-*.keras"):
            if state.name != current.name:
                state.unlink()
        if first:
            self._remove_others()
            write_atomically(self._key, self.key.encode())

    def _remove_others(self) -> None:
        """Remove what an earlier training left beside the files of this one, such as its events for TensorBoard."""
        for path in list(self.folder.iterdir()):
            if path.name not in (*FILES, HISTORY, self._key.parent.name):
                with suppress(FileNotFoundError):  # object stores may list the folder itself
                    path.fs.rm(path.path, recursive=True)


class EpochEnd(keras.callbacks.Callback):  # type: ignore[misc]  # keras has no types
    """Shows, records and saves each epoch, and stops the training once it has stalled for `patience` epochs.

    `steps` is the number of steps per epoch. Close the callback when the training ends, with or without an error.
    """

    def __init__(
        self, files: CheckpointFolder, history: TrainingHistory, clock: StepClock, patience: int, steps: int,
        progress: Progress,
    ) -> None:  # fmt: skip
        super().__init__()
        self._files, self._clock, self._patience, self._steps = files, clock, patience, steps
        self._progress, self._shown = progress, ExitStack()
        self._started_s = 0.0
        self.history = history

    def close(self) -> None:
        """End the display of an epoch."""
        self._shown.close()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Start the clocks; `epoch` counts from 0."""
        title = f"train {self._files.folder.name}, epoch {epoch + 1}"
        advance = self._shown.enter_context(self._progress(title, self._steps))
        self._started_s = time.perf_counter()
        self._clock.start(advance)

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Record, save and log the epoch."""
        wall_s = time.perf_counter() - self._started_s
        self.close()
        losses = dict(logs or {})
        if not all(np.isfinite(weights).all() for weights in self.model.get_weights()):
            # the last step overflowed: this network answers NaN, though the mean loss of the steps is finite
            losses["val_loss" if "val_loss" in losses else "loss"] = np.nan
        row = {"epoch": epoch + 1, **losses, "wall_s": wall_s, **self._clock.timings()}
        self.history = TrainingHistory((*self.history.rows, row))
        self._files.save(self.model, self.history)
        self.model.stop_training = self.history.stalled(self._patience)
        values = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        log.info("train %s: %s", self._files.folder.name, values)


class Events(keras.callbacks.Callback):  # type: ignore[misc]  # keras has no types
    """Events for TensorBoard from the first saved epoch on: Keras's callback writes as soon as it has a model."""

    def __init__(self, folder: UPath, epoch_end: EpochEnd) -> None:
        super().__init__()
        self._folder, self._epoch_end = folder, epoch_end
        self._writer: keras.callbacks.TensorBoard | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Write the metrics of an epoch; it comes after `EpochEnd`."""
        if self._epoch_end.history.best_epoch is None:
            return
        if self._writer is None:
            self._writer = keras.callbacks.TensorBoard(str(self._folder))
            self._writer.set_model(self.model)
        self._writer.on_epoch_end(epoch, logs)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Close the files."""
        if self._writer is not None:
            self._writer.on_train_end(logs)
