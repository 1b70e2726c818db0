"""The train stage: store → model, continued after a kill where it was."""

import logging
import sys
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf
from upath import UPath

from model.bundle import Description
from model.checkpoint import Checkpoint
from model.config import ModelConfig
from model.data.store_reader import Store
from model.loader import frame_dataset, reason, sequence_dataset
from model.networks import build
from pipeline.errors import PipelineError
from pipeline.outputs import OutputFolder
from pipeline.storage import is_local

MAX_STEPS_AT_ONCE = 10
"""Steps of training for which data are fetched, and TensorFlow is called, once; more bring nothing."""

log = logging.getLogger(__name__)


def train(output: OutputFolder, name: str, config: ModelConfig, seed: int, key: str) -> dict[str, Any]:
    """Train the model `name` on the store of `output`, and return what the run's record says of it.

    `models/NAME/` gets model.keras (the best epoch by validation loss), labels.json, history.csv and checkpoints/.
    After each epoch everything needed to go on is saved, so the same call after a kill continues, and ends with the
    same history as if it had never stopped. `key` identifies data and settings: a checkpoint of another key is
    discarded.
    """
    keras.backend.clear_session()  # layers are numbered through; what was built before must not show in a file
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    store = Store(str(output.store))
    _check(store)
    folder = output.model(name)
    checkpoint = Checkpoint(folder, config.patience, key)
    model = checkpoint.load() or build.build(
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
    frames = build.takes_frames(model)
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
    return max(1, min(MAX_STEPS_AT_ONCE, rows // batch_size))


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
    Description(
        labels=store.labels,
        level="frame" if build.takes_frames(model) else "sequence",
        timesteps=store.timesteps,
        features=store.attributes["config"]["features"],
    ).write(folder)


def _class_weights(store: Store) -> dict[int, float]:
    """Weights that make every language count the same: n / (languages × n of the language), as scikit-learn has it."""
    counts = store.label_counts("train")
    present = counts > 0
    weights = np.where(present, counts.sum() / (present.sum() * np.maximum(counts, 1)), 1.0)
    return dict(enumerate(weights.tolist()))


def _tensorboard(folder: UPath) -> list[keras.callbacks.Callback]:
    """TensorBoard writes to local folders alone."""
    return [keras.callbacks.TensorBoard(str(folder / "tensorboard"))] if is_local(folder) else []
