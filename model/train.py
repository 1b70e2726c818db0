"""The train stage: store → model, continued after a kill where it was."""

import io
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from upath import UPath

from model import network
from model.config import ModelConfig
from model.loader import Store, frame_dataset, reason, sequence_dataset
from model.recurrence import accelerate
from pipeline.errors import PipelineError
from pipeline.schema import Layout, is_local, write_atomically

MOST_STEPS_AT_ONCE = 10
"""Steps of training for which data are fetched, and TensorFlow is called, once; more bring nothing."""

log = logging.getLogger(__name__)


def train(layout: Layout, name: str, config: ModelConfig, seed: int, key: str) -> dict[str, Any]:
    """Train the model `name` on the store of `layout`, and return what the run's record says of it.

    `models/NAME/` gets model.keras (the best epoch by validation loss), labels.json, history.csv and checkpoints/.
    After each epoch everything needed to go on is saved, so the same call after a kill continues, and ends with the
    same history as if it had never stopped. `key` identifies data and settings: a checkpoint of another key is
    discarded.
    """
    keras.backend.clear_session()  # layers are numbered through; what was built before must not show in a file
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    store = Store(str(layout.store))
    _check(store)
    folder = layout.model(name)
    checkpoint = Checkpoint(folder, config.patience, key)
    model = checkpoint.load() or network.build(
        config, store.timesteps, store.train_mean, store.train_std, len(store.labels)
    )
    _describe(folder, store, model)
    if not checkpoint.finished(config.max_epochs):
        try:
            _fit(model, store, config, seed, checkpoint, folder)
        except tf.errors.OpError as error:
            raise reason(error) from None
    best = checkpoint.best_epoch()
    log.info("train %s: %d epochs, the best is epoch %d", name, checkpoint.epochs, best + 1)
    epochs = pd.DataFrame(checkpoint.history)
    return {
        "epochs": checkpoint.epochs,
        "best_epoch": best + 1,
        "parameters": int(model.count_params()),
        **{name: float(epochs[name].mean()) for name in ("steps_per_s", "input_wait")},
    }


def _fit(
    model: keras.Model, store: Store, config: ModelConfig, seed: int, checkpoint: "Checkpoint", folder: UPath
) -> None:
    """Train the epochs that are left."""
    validated = bool(store.label_counts("validation").any())
    if not validated:
        log.warning("train %s: there is no validation speaker; the best epoch is chosen by training loss", folder.name)
    model.train_function = checkpoint.clock.train_function(model, config.batch_size)
    frames = network.takes_frames(model)
    dataset = frame_dataset if frames else sequence_dataset
    steps = steps_at_once(config.batch_size, store.block_size * (store.timesteps if frames else 1))
    model.fit(
        dataset(store, "train", steps * config.batch_size, seed, first_epoch=checkpoint.epochs),
        validation_data=dataset(store, "validation", config.batch_size, shuffle=False) if validated else None,
        epochs=config.max_epochs,
        initial_epoch=checkpoint.epochs,
        class_weight=_class_weights(store) if config.balance_labels else None,
        callbacks=[checkpoint, *_tensorboard(folder)],
        shuffle=False,  # the dataset does it
        verbose=int(sys.stdout.isatty()),
    )


def steps_at_once(batch_size: int, rows: int) -> int:
    """Return for how many steps data are fetched at a time: at most about the `rows` that the loader reads at once."""
    return max(1, min(MOST_STEPS_AT_ONCE, rows // batch_size))


class StepClock:
    """Runs the steps of an epoch, and measures them and how much of their time training waits for data."""

    def __init__(self) -> None:
        self._reader = ThreadPoolExecutor(1, "input")
        self._source: Iterator[Any] | None = None
        self.start()

    def start(self) -> None:
        """Begin an epoch."""
        self._started_s = self._ended_s = time.perf_counter()
        self._waited_s, self._steps = 0.0, 0

    def train_function(self, model: keras.Model, batch_size: int) -> Callable[[Iterator[Any]], Any]:
        """Return what Keras calls for the next data of a dataset: a step for each `batch_size` of its rows.

        The steps are Keras's own, in one call of TensorFlow.
        """
        step = tf.function(model.train_step, jit_compile=bool(model.jit_compile), reduce_retracing=True)

        def steps(data: Any) -> Any:
            for start in tf.range(0, tf.shape(data[0])[0], batch_size):
                step(tuple(part[start : start + batch_size] for part in data))
            return model.get_metrics_result()

        call = tf.function(steps, reduce_retracing=True)

        def train_on_next(source: Iterator[Any]) -> Any:
            data = self._next(source)
            logs = call(data)
            self._ended_s, self._steps = time.perf_counter(), self._steps + -(-len(data[0]) // batch_size)
            return logs

        return train_on_next

    def _next(self, source: Iterator[Any]) -> Any:
        """Return the next data, and have those after them read meanwhile.

        In a thread of ours, because tf.data prefetches nothing where TensorFlow is to be deterministic.
        """
        asked_s = time.perf_counter()
        if source is not self._source:
            self._source, self._ahead = source, self._reader.submit(next, source)
        data = self._ahead.result()
        self._waited_s += time.perf_counter() - asked_s
        self._ahead = self._reader.submit(next, source)
        return data

    def figures(self) -> dict[str, float]:
        """Return steps a second, and the fraction of the steps' time that went into waiting for input."""
        wall_s = max(self._ended_s - self._started_s, 1e-9)
        return {"steps_per_s": self._steps / wall_s, "input_wait": self._waited_s / wall_s}


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
            write_atomically(self._folder / "model.keras", content)
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


def model_bytes(model: keras.Model) -> bytes:
    """Return a model as the content of a .keras file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return path.read_bytes()


def load_model(path: UPath) -> keras.Model:
    """Load a .keras file from anywhere, as fast as `network.build` makes one."""
    with tempfile.TemporaryDirectory() as folder:
        local = Path(folder) / "model.keras"
        local.write_bytes(path.read_bytes())
        model = keras.saving.load_model(local)
    accelerate(model)
    return model


def _check(store: Store) -> None:
    present = store.label_counts("train") > 0
    if np.sum(present) < 2:  # noqa: PLR2004
        found = [label for label, there in zip(store.labels, present, strict=True) if there]
        raise PipelineError(
            f"training needs at least two languages with valid sequences, the store has {found or 'none'}; see the "
            "ledger for what failed"
        )


def _describe(folder: UPath, store: Store, model: keras.Model) -> None:
    """Write labels.json: all that is needed to use the model on a recording."""
    description = {
        "labels": list(store.labels),
        "level": "frame" if network.takes_frames(model) else "sequence",
        "timesteps": store.timesteps,
        "features": store.attributes["config"]["features"],
    }
    write_atomically(folder / "labels.json", json.dumps(description, indent=1, ensure_ascii=False).encode())


def _class_weights(store: Store) -> dict[int, float]:
    """Weights that make every language count the same: n / (languages × n of the language), as scikit-learn has it."""
    counts = store.label_counts("train")
    present = counts > 0
    weights = np.where(present, counts.sum() / (present.sum() * np.maximum(counts, 1)), 1.0)
    return dict(enumerate(weights.tolist()))


def _tensorboard(folder: UPath) -> list[keras.callbacks.Callback]:
    """TensorBoard writes to local folders alone."""
    return [keras.callbacks.TensorBoard(str(folder / "tensorboard"))] if is_local(folder) else []
