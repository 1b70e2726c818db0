"""The train stage: from a feature store to a trained model, resumable after every epoch."""

import logging
import sys
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from upath import UPath

from model.bundle import Description
from model.checkpoint import CheckpointFolder, EpochEnd, TrainingHistory
from model.config import ModelConfig
from model.data.store_reader import Store
from model.loader import reason, sequence_dataset
from model.networks import build
from model.step_clock import StepClock
from pipeline.errors import PipelineError
from pipeline.outputs import OutputFolder
from pipeline.storage import is_local

MAX_STEPS_PER_CALL = 10
"""Training steps per call of TensorFlow and per element of the dataset; more do not train faster."""

log = logging.getLogger(__name__)


def train(output: OutputFolder, name: str, config: ModelConfig, seed: int, key: str) -> dict[str, Any]:
    """Train the model `name` on the store of `output`; return facts for the run record.

    `models/NAME/` receives model.keras (the best epoch), labels.json, history.csv and checkpoints/. After an
    interruption the same call continues after the last finished epoch and ends with the same history and weights as
    an uninterrupted one. `key` identifies data and settings; files of another key are removed first.

    Raises PipelineError if fewer than two languages have valid training sequences, or if the store is damaged.
    """
    keras.backend.clear_session()  # numbers in the names of layers start again, so that equal models are equal files
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    store = Store(str(output.store))
    _check_languages(store)
    files = CheckpointFolder(output.model(name))
    history = files.resume(key)
    model = files.load(history) or build.build(
        config, store.timesteps, store.train_mean, store.train_std, len(store.labels)
    )
    _write_description(files.folder, store, model)
    if history.epochs < config.max_epochs and not history.stalled(config.patience):
        try:
            history = _fit(model, store, config, seed, files, history)
        except tf.errors.OpError as error:
            raise reason(error) from None
    if history.best_epoch is None:
        log.warning("train %s: no epoch had a finite loss; try a lower learning_rate", name)
    else:
        log.info("train %s: %d epochs, the best is epoch %d", name, history.epochs, history.best_epoch)
    return {
        "epochs": history.epochs,
        "best_epoch": history.best_epoch,
        "parameters": int(model.count_params()),
        **{column: history.mean(column) for column in ("steps_per_s", "input_wait")},
    }


def _fit(
    model: keras.Model, store: Store, config: ModelConfig, seed: int, files: CheckpointFolder, history: TrainingHistory
) -> TrainingHistory:
    """Train the epochs that follow `history`; return the history with them."""
    validated = bool(store.label_counts("validation").any())
    if not validated:
        log.warning("train %s: no validation speaker; the training loss selects the best epoch", files.folder.name)
    clock = StepClock()
    epoch_end = EpochEnd(files, history, clock, config.patience)
    model.train_function = clock.train_function(model, config.batch_size)  # Keras 3.15, see there
    frames = build.takes_frames(model)
    steps = steps_per_call(config.batch_size, store.block_size * (store.timesteps if frames else 1))
    training = sequence_dataset(
        store, "train", steps * config.batch_size, seed, first_epoch=history.epochs, frames=frames
    )
    validation = sequence_dataset(store, "validation", config.batch_size, shuffle=False, frames=frames)
    model.fit(
        training,
        validation_data=validation if validated else None,
        epochs=config.max_epochs,
        initial_epoch=history.epochs,
        class_weight=_class_weights(store) if config.balance_labels else None,
        callbacks=[epoch_end, *_tensorboard(files.folder)],
        shuffle=False,  # the dataset is shuffled
        verbose=int(sys.stdout.isatty()),
    )
    return epoch_end.history


def steps_per_call(batch_size: int, rows: int) -> int:
    """Return the number of training steps per element of the dataset, if the loader reads `rows` rows at a time."""
    return max(1, min(MAX_STEPS_PER_CALL, rows // batch_size))


def _check_languages(store: Store) -> None:
    present = store.label_counts("train") > 0
    if np.sum(present) < 2:  # noqa: PLR2004
        found = [label for label, there in zip(store.labels, present, strict=True) if there]
        raise PipelineError(
            f"training needs at least two languages with valid sequences, the store has {found or 'none'}; see the "
            "ledger for what failed"
        )


def _write_description(folder: UPath, store: Store, model: keras.Model) -> None:
    """Write labels.json: which describes what the network takes and returns."""
    Description(
        labels=store.labels,
        level="frame" if build.takes_frames(model) else "sequence",
        timesteps=store.timesteps,
        features=store.attributes["config"]["features"],
    ).write(folder)


def _class_weights(store: Store) -> dict[int, float]:
    """Return a weight per label: n / (labels × n of the label), scikit-learn's "balanced"; 1 for an absent label.

    scikit-learn's compute_class_weight needs the label of every sequence; the store gives counts.
    """
    counts = store.label_counts("train")
    present = counts > 0
    weights = np.where(present, counts.sum() / (present.sum() * np.maximum(counts, 1)), 1.0)
    return dict(enumerate(weights.tolist()))


def _tensorboard(folder: UPath) -> list[keras.callbacks.Callback]:
    """Return the callback for TensorBoard, which writes to local folders only."""
    return [keras.callbacks.TensorBoard(str(folder / "tensorboard"))] if is_local(folder) else []
