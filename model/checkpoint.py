"""The state of a training after each epoch, from which an interrupted training continues."""

import logging
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import dataclass, replace

import keras
import numpy as np
from upath import UPath

from model import archive
from model.bundle import CHECKPOINTS, FILES, NETWORK, Description, load_members, saved_members
from model.step_clock import Advance, StepClock
from model.training_history import HISTORY, TrainingHistory
from pipeline.durable_files import write_atomically
from pipeline.errors import few

Progress = Callable[[str, int], AbstractContextManager[Advance]]
"""Shows the progress of a title in a number of steps, while its context is open."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedEpoch:
    """The state of a training after the last epoch of `history`, as it is saved in `file`.

    `members` are those that Keras saves of the network and its optimiser.
    """

    file: UPath
    members: archive.Members
    history: TrainingHistory

    def load(self) -> keras.Model:
        """Return the network and its optimiser; raises PipelineError if Keras cannot load them."""
        return load_members(self.members, self.file)


@dataclass(frozen=True)
class CheckpointFolder:
    """The files of one training in the folder of its model.

    checkpoints/epoch-NNNN.keras is the state after the last finished epoch, with the key of the training, its
    description and its history: the epoch is finished once this file is written. model.keras is the same of the best
    epoch, without the time that epochs took. labels.json and history.csv are written from these files.

    A model of other data or settings stays in the folder until the first epoch with a finite loss is saved. Its files
    are then replaced one by one. As each checkpoint names its training, none continues from a mixture.

    `key` identifies data and settings. `replacing` is called before the first file of another training is replaced.
    """

    folder: UPath
    key: str
    description: Description
    replacing: Callable[[], None]

    @property
    def _states(self) -> UPath:
        return self.folder / CHECKPOINTS

    def _state(self, epoch: int) -> UPath:
        """Return the file of the state after `epoch` epochs."""
        return self._states / f"epoch-{epoch:04d}.keras"

    def resumed(self) -> SavedEpoch | None:
        """Return the state from which the training with this key continues, or None; log which.

        The files that belong to it are written anew, as some may be missing or damaged.
        """
        saved, lost = self.newest()
        name, reason = self.folder.name, f"{few(lost)} missing or damaged; " if lost else ""
        if saved:
            log.log(logging.WARNING if lost else logging.INFO, "train %s: %scontinuing after epoch %d", name, reason,
                    saved.history.epochs)  # fmt: skip
            if saved.file.name == NETWORK:
                saved = replace(saved, history=self._with_timings(saved.history))
            self._write(saved)
        elif lost:
            log.warning("train %s: %straining starts again", name, reason)
        elif self.has_model():
            log.info(
                "train %s: data or settings have changed, training starts again; the present model stays until the "
                "first epoch is finished", name,
            )  # fmt: skip
        return saved

    def newest(self) -> tuple[SavedEpoch | None, list[str]]:
        """Return the last saved epoch of this training that can be continued from, and the files that are damaged.

        The network of the best epoch must be there, too.
        """
        lost: list[str] = []
        network = self._read(self.folder / NETWORK, lost)
        states = [self._read(file, lost) for file in self._states.glob("epoch-*.keras")]
        found = [saved for saved in (*states, network) if saved]  # of equal ones the state, which has the times
        found.sort(key=lambda saved: saved.history.epochs, reverse=True)
        for saved in found:
            if saved.history.best_epoch in (saved.history.epochs, network and network.history.epochs):
                return saved, lost
        if found and network is None and str(self.folder / NETWORK) not in lost:
            lost.append(str(self.folder / NETWORK))
        return None, lost

    def _read(self, file: UPath, lost: list[str]) -> SavedEpoch | None:
        """Return what a file has of this training, None if it is of another one; a damaged file is added to `lost`."""
        try:
            members = archive.unpack(file.read_bytes())
            if members.get(archive.KEY) != self.key.encode():
                return None
            history = TrainingHistory.parse(members[archive.HISTORY])
        except FileNotFoundError:
            return None
        except (ValueError, KeyError):
            lost.append(str(file))
            return None
        return SavedEpoch(file, archive.of_keras(members), history)

    def _with_timings(self, history: TrainingHistory) -> TrainingHistory:
        """Return the same epochs with the times in history.csv, unless it has other epochs or is damaged."""
        try:
            found = TrainingHistory.parse((self.folder / HISTORY).read_bytes())
        except (FileNotFoundError, ValueError):
            return history
        same = TrainingHistory(found.rows[: history.epochs])
        return same if same.without_timings() == history else history

    def has_model(self) -> bool:
        """Whether there is a model, of this training or of an earlier one."""
        return (self.folder / NETWORK).exists()

    def save(self, model: keras.Model, history: TrainingHistory) -> None:
        """Save the state after the last epoch of `history`; keep the model as model.keras if it is the best so far.

        Nothing is saved until an epoch has a finite loss.
        """
        if history.best_epoch is None:
            return
        if TrainingHistory(history.rows[:-1]).best_epoch is None:
            self.replacing()
            self._remove_others()
        self._write(SavedEpoch(self._state(history.epochs), saved_members(model), history))

    def _write(self, saved: SavedEpoch) -> None:
        """Write the state after the last epoch, and the files that follow from it; remove other states."""
        history, last = saved.history, self._state(saved.history.epochs)
        write_atomically(last, self._content(saved.members, history))
        if history.epochs == history.best_epoch:
            # before labels.json: a network of other languages names its own, and is refused until they are written
            write_atomically(self.folder / NETWORK, self._content(saved.members, history.without_timings()))
        self.description.write(self.folder)
        write_atomically(self.folder / HISTORY, history.content)
        for state in list(self._states.glob("*")):
            if state.name not in (last.name, self._states.name):  # object stores may list the folder itself
                state.unlink()

    def _content(self, members: archive.Members, history: TrainingHistory) -> bytes:
        added = {archive.LABELS: self.description.content, archive.HISTORY: history.content,
                 archive.KEY: self.key.encode()}  # fmt: skip
        return archive.pack({**members, **added})

    def _remove_others(self) -> None:
        """Remove what an earlier training left beside the files of this one, such as its events for TensorBoard."""
        for path in list(self.folder.iterdir()) if self.folder.exists() else ():
            if path.name not in (*FILES, HISTORY, self._states.name):
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
