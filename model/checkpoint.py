"""The state of a training after each epoch, from which a killed training continues."""

import io
import logging
import time

import keras
import numpy as np
import pandas as pd
from upath import UPath

from model.bundle import NETWORK, load_model, model_bytes
from model.step_clock import StepClock
from pipeline.storage import write_atomically

log = logging.getLogger(__name__)


class Checkpoint(keras.callbacks.Callback):  # type: ignore[misc]  # keras has no types
    """Saves model, optimiser and history after each epoch; keeps the best model; stops when nothing gets better.

    The history file is written last and says which epochs are done, so a kill between two writes repeats an epoch
    and loses nothing. Patience and the best epoch are read off the history, not remembered.
    """

    def __init__(self, folder: UPath, patience: int, key: str) -> None:
        super().__init__()
        self._folder, self._patience, self._key = folder, patience, key
        self._started_s = 0.0
        self.clock = StepClock()
        self.history = self._read_history()

    @property
    def epochs(self) -> int:
        """Epochs done."""
        return len(self.history)

    def best_epoch(self) -> int:
        """Return the number, from 0, of the epoch with the smallest validation (else training) loss."""
        losses = [row.get("val_loss", row["loss"]) for row in self.history]
        return int(np.argmin(np.nan_to_num(losses, nan=np.inf)))  # an epoch that came to nothing is not the best

    def finished(self, max_epochs: int) -> bool:
        """Whether training is over: all epochs done, or none better for as many as the patience."""
        if not self.history:
            return False
        return self.epochs >= max_epochs or self.epochs - 1 - self.best_epoch() >= self._patience

    def load(self) -> keras.Model | None:
        """Return the model as the last epoch left it, with its optimiser, or None."""
        if not self.history:
            return None
        log.info("train: continues after epoch %d", self.epochs)
        return load_model(self._state(self.epochs))

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Start the clocks."""
        self._started_s = time.perf_counter()
        self.clock.start()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Save everything, the history last."""
        row = {
            "epoch": epoch + 1,
            **(logs or {}),
            "wall_s": time.perf_counter() - self._started_s,
            **self.clock.figures(),
        }
        self.history = [*self.history, row]
        content = model_bytes(self.model)
        write_atomically(self._state(self.epochs), content)
        if self.best_epoch() == epoch:
            write_atomically(self._folder / NETWORK, content)
        table = pd.DataFrame(self.history).to_csv(index=False)
        write_atomically(self._folder / "history.csv", table.encode())
        for state in self._state(self.epochs).parent.glob("epoch-*.keras"):
            if state.name != self._state(self.epochs).name:
                state.unlink()
        self.model.stop_training = self.finished(self.epochs + 1)
        log.info("train %s: %s", self._folder.name, "  ".join(f"{k} {v:.4g}" for k, v in row.items()))

    def _state(self, epochs: int) -> UPath:
        return self._folder / "checkpoints" / f"epoch-{epochs:04d}.keras"

    def _read_history(self) -> list[dict[str, float]]:
        """Return the epochs that are done for this key, after clearing what is left of another."""
        key_file = self._folder / "checkpoints" / "key.txt"
        if key_file.exists() and key_file.read_text() == self._key:
            history = self._folder / "history.csv"
            if not history.exists():
                return []
            rows = pd.read_csv(io.BytesIO(history.read_bytes())).to_dict("records")
            return [{str(name): value for name, value in row.items()} for row in rows]
        if self._folder.exists():
            log.info("train: data or settings have changed; %s is trained afresh", self._folder.name)
            self._folder.fs.rm(self._folder.path, recursive=True)
        write_atomically(key_file, self._key.encode())
        return []
