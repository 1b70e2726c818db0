"""The train stage: from a feature store to a trained model, resumable after every epoch."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from upath import UPath

from model.bundle import Description
from model.checkpoint import CheckpointFolder, EpochEnd, Events, Progress
from model.config import ModelConfig
from model.data.store_reader import Store
from model.loader import reason, sequence_dataset
from model.networks import build
from model.step_clock import Advance, StepClock
from model.training_history import TrainingHistory
from pipeline.errors import PipelineError, UsageError
from pipeline.outputs import OutputFolder
from pipeline.storage import is_local

MAX_STEPS_PER_CALL = 10
"""Training steps per call of TensorFlow and per element of the dataset; more do not train faster."""

BYTES_PER_PARAMETER = 3 * 4
"""At least: a weight, its gradient and one float32 of the optimiser."""

log = logging.getLogger(__name__)


@contextmanager
def not_shown(title: str, steps: int) -> Iterator[Advance]:  # noqa: ARG001
    """Show no progress."""
    yield lambda _: None


def train(
    output: OutputFolder, name: str, config: ModelConfig, seed: int, key: str, *,
    progress: Progress = not_shown, replacing: Callable[[], None] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """Train the model `name` on the store of `output`; return facts for the run record.

    `models/NAME/` receives model.keras (the best epoch), labels.json, history.csv and checkpoints/. After an
    interruption the same call continues after the last finished epoch and ends with the same history and weights as
    an uninterrupted one. If the last epoch is damaged, it continues from an earlier one, or starts again. Other files
    that are missing or damaged are written again.

    `key` identifies data and settings. A model of another key stays until the first epoch with a finite loss, which
    replaces it; `replacing` is called just before. `progress` shows the steps of each epoch.

    Raises UsageError for a network that needs more memory than this machine has, and PipelineError if fewer than two
    languages have valid training sequences, if the store is damaged, if memory runs out, or if no epoch has a finite
    loss.
    """
    store = Store(str(output.store))
    _check_languages(store)
    _check_memory(name, config, store)
    keras.backend.clear_session()  # numbers in the names of layers start again, so that equal models are equal files
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    files = CheckpointFolder(output.model(name), key, _description(store, config), replacing)
    saved = files.resumed()
    history = saved.history if saved else TrainingHistory()
    try:
        model = (
            saved.load()
            if saved
            else build.build(config, store.timesteps, store.train_mean, store.train_std, len(store.labels))
        )
        if history.epochs < config.max_epochs and not history.stalled(config.patience):
            history = _fit(model, store, config, seed, files, history, progress)
    except tf.errors.ResourceExhaustedError:
        raise PipelineError(
            f"train {name}: TensorFlow ran out of memory; lower models.{name}.batch_size ({config.batch_size}) or the "
            f"number of units{_kept(files)}"
        ) from None
    except tf.errors.OpError as error:
        raise reason(error) from None
    if history.best_epoch is None:
        raise PipelineError(
            f"train {name}: no epoch had a finite loss; lower models.{name}.learning_rate "
            f"({config.learning_rate:g}){_kept(files)}"
        )
    log.info("train %s: %d epochs, the best is epoch %d", name, history.epochs, history.best_epoch)
    return {
        "epochs": history.epochs,
        "best_epoch": history.best_epoch,
        "parameters": int(model.count_params()),
        **{column: history.mean(column) for column in ("steps_per_s", "input_wait")},
    }


def _kept(files: CheckpointFolder) -> str:
    """Return the part of an error message that concerns the model of an earlier training."""
    unchanged = files.has_model() and files.newest()[0] is None
    return f"; the model in {files.folder} is unchanged" if unchanged else ""


def _fit(
    model: keras.Model, store: Store, config: ModelConfig, seed: int, files: CheckpointFolder,
    history: TrainingHistory, progress: Progress,
) -> TrainingHistory:  # fmt: skip
    """Train the epochs that follow `history`; return the history with them."""
    validated = bool(store.label_counts("validation").any())
    if not validated:
        log.warning("train %s: no validation speaker; the training loss selects the best epoch", files.folder.name)
    frames = config.level == "frame"
    rows_per_sequence = store.timesteps if frames else 1
    batches = -(-int(store.label_counts("train").sum()) * rows_per_sequence // config.batch_size)
    clock = StepClock()
    epoch_end = EpochEnd(files, history, clock, config.patience, batches, progress)
    model.train_function = clock.train_function(model, config.batch_size)  # Keras 3.15, see there
    steps = steps_per_call(config.batch_size, store.block_size * rows_per_sequence)
    training = sequence_dataset(
        store, "train", steps * config.batch_size, seed, first_epoch=history.epochs, frames=frames
    )
    validation = sequence_dataset(store, "validation", config.batch_size, shuffle=False, frames=frames)
    with closing(epoch_end):
        model.fit(
            training,
            validation_data=validation if validated else None,
            epochs=config.max_epochs,
            initial_epoch=history.epochs,
            class_weight=_class_weights(store) if config.balance_labels else None,
            callbacks=[epoch_end, *_tensorboard(files.folder, epoch_end)],
            shuffle=False,  # the dataset is shuffled
            verbose=0,  # `progress` shows the steps
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


def _check_memory(name: str, config: ModelConfig, store: Store) -> None:
    """Refuse a network that this machine cannot train: the kernel would kill the process without a word."""
    parameters = build.parameters(config, store.timesteps, store.n_features, len(store.labels))
    needed, there = parameters * BYTES_PER_PARAMETER, machine_memory_bytes()
    if needed > there:
        raise UsageError(
            f"train {name}: {parameters:.3g} parameters need {needed / 2**30:,.0f} GiB, this machine has "
            f"{there / 2**30:,.0f} GiB; lower the sizes of the layers in models.{name}"
        )


def machine_memory_bytes() -> int:
    """Return the memory of this machine."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _description(store: Store, config: ModelConfig) -> Description:
    return Description(
        labels=store.labels,
        level=config.level,
        timesteps=store.timesteps,
        features=store.attributes["config"]["features"],
    )


def _class_weights(store: Store) -> dict[int, float]:
    """Return a weight per label: n / (labels × n of the label), scikit-learn's "balanced"; 1 for an absent label.

    scikit-learn's compute_class_weight needs the label of every sequence; the store gives counts.
    """
    counts = store.label_counts("train")
    present = counts > 0
    weights = np.where(present, counts.sum() / (present.sum() * np.maximum(counts, 1)), 1.0)
    return dict(enumerate(weights.tolist()))


def _tensorboard(folder: UPath, epoch_end: EpochEnd) -> list[keras.callbacks.Callback]:
    """Return the callback for TensorBoard, which writes to local folders only."""
    return [Events(folder / "tensorboard", epoch_end)] if is_local(folder) else []
