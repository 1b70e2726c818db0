"""The networks. Each takes raw MFCCs: normalisation by the store's training statistics is its first layer."""

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model.config import AnnConfig, LstmConfig, ModelConfig

Array = NDArray[np.floating]
BINARY = 2
MOST_UNROLLED = 64
"""Timesteps; the graph grows with them."""
ROWS = 4096
"""Rows given to a network at once, which bounds the memory of its activations."""


def build(config: ModelConfig, timesteps: int, mean: Array, std: Array, labels: int) -> keras.Model:
    """Build and compile the network that `config` describes, for `labels` languages.

    `mean` and `std` are (mfcc,). Two languages are told apart by one sigmoid unit, the probability of the second;
    more by a softmax.
    """
    compiled: bool | str
    match config:
        case AnnConfig():
            network = _ann(config, mean, std, labels)
            compiled = "auto"
            optimizer = keras.optimizers.Adam(config.learning_rate)
        case LstmConfig():
            network = _lstm(config, timesteps, mean, std, labels)
            compiled = False  # XLA takes a fifth longer a step, and six seconds before the first
            optimizer = keras.optimizers.RMSprop(config.learning_rate)
    loss = "binary_crossentropy" if labels == BINARY else "sparse_categorical_crossentropy"
    network.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], jit_compile=compiled)
    return network


def takes_frames(network: keras.Model) -> bool:
    """Whether a network classifies single frames rather than sequences."""
    return len(network.input_shape) == 2  # noqa: PLR2004 (batch, mfcc)


def probabilities(network: keras.Model, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probability of each label: (…, label) float64 for features (…, mfcc) or (…, timestep, mfcc)."""
    parts = [network.predict_on_batch(features[i : i + ROWS]) for i in range(0, len(features), ROWS)]
    output = np.concatenate(parts).astype(np.float64)
    return np.concatenate([1 - output, output], axis=-1) if output.shape[-1] == 1 else output


def _normalization(mean: Array, std: Array) -> keras.layers.Layer:
    return keras.layers.Normalization(axis=-1, mean=mean, variance=np.square(std))


def _output(labels: int) -> keras.layers.Layer:
    if labels == BINARY:
        return keras.layers.Dense(1, activation="sigmoid")
    return keras.layers.Dense(labels, activation="softmax")


def _ann(config: AnnConfig, mean: Array, std: Array, labels: int) -> keras.Model:
    hidden = [keras.layers.Dense(units, activation="relu") for units in config.hidden_units]
    inputs = keras.Input((len(mean),))
    return keras.Sequential([inputs, _normalization(mean, std), *hidden, _output(labels)], name="ann")


def _unrolls(timesteps: int) -> bool:
    """Whether to unroll the recurrence: a tenth to a sixth faster on CPUs; on a GPU cuDNN takes the loop as it is."""
    return timesteps <= MOST_UNROLLED and not tf.config.list_physical_devices("GPU")


def _lstm(config: LstmConfig, timesteps: int, mean: Array, std: Array, labels: int) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((timesteps, len(mean))),
            _normalization(mean, std),
            keras.layers.LSTM(config.units, return_sequences=True, unroll=_unrolls(timesteps)),
            keras.layers.Flatten(),  # (batch, timestep × units)
            _output(labels),
        ],
        name="lstm",
    )
