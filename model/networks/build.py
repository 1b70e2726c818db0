"""The networks. Each takes raw features: normalisation by the store's training statistics is its first layer."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model.config import AnnConfig, LstmConfig, ModelConfig
from model.networks.lstm_cpu import accelerate

Array = NDArray[np.floating]
BINARY = 2
ROWS = 4096
"""Rows given to a network at once, which bounds the memory of its activations."""
TENSOR_CORES = (7, 0)
"""The lowest compute capability of a GPU that multiplies float16 matrices faster than float32."""


def build(config: ModelConfig, timesteps: int, mean: Array, std: Array, labels: int) -> keras.Model:
    """Build and compile the network that `config` describes, for `labels` languages.

    `mean` and `std` are (feature,). Two languages are told apart by one sigmoid unit, the probability of the second;
    more by a softmax.
    """
    compiled: bool | str
    policy = precision(compute_capabilities())
    match config:
        case AnnConfig():
            network = _ann(config, mean, std, labels, policy)
            compiled = "auto"
            optimizer = keras.optimizers.Adam(config.learning_rate)
        case LstmConfig():
            network = _lstm(config, timesteps, mean, std, labels, policy)
            compiled = False  # XLA takes longer a step, and seconds before the first
            optimizer = keras.optimizers.RMSprop(config.learning_rate)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    loss = "binary_crossentropy" if labels == BINARY else "sparse_categorical_crossentropy"
    network.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], jit_compile=compiled)
    accelerate(network)
    return network


def compute_capabilities() -> list[tuple[int, int]]:
    """Return the compute capability (major, minor) of each GPU; (0, 0) of one that has none."""
    gpus = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus]


def precision(capabilities: Sequence[tuple[int, int]]) -> str:
    """Return the Keras dtype policy for GPUs of these compute capabilities; without a GPU it is float32."""
    return "mixed_float16" if capabilities and min(capabilities) >= TENSOR_CORES else "float32"


def takes_frames(network: keras.Model) -> bool:
    """Whether a network classifies single frames rather than sequences."""
    return len(network.input_shape) == 2  # noqa: PLR2004 (batch, feature)


def probabilities(network: keras.Model, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probability of each label: (…, label) float64 for features (…, feature) or (…, timestep, feature)."""
    parts = [network.predict_on_batch(features[i : i + ROWS]) for i in range(0, len(features), ROWS)]
    output = np.concatenate(parts).astype(np.float64)
    return np.concatenate([1 - output, output], axis=-1) if output.shape[-1] == 1 else output


def _normalization(mean: Array, std: Array) -> keras.layers.Layer:
    """Float32 in any policy: raw MFCCs reach hundreds."""
    return keras.layers.Normalization(axis=-1, mean=mean, variance=np.square(std), dtype="float32")


def _output(labels: int) -> keras.layers.Layer:
    """Float32 in any policy: probabilities and the loss need the digits."""
    if labels == BINARY:
        return keras.layers.Dense(1, activation="sigmoid", dtype="float32")
    return keras.layers.Dense(labels, activation="softmax", dtype="float32")


def _ann(config: AnnConfig, mean: Array, std: Array, labels: int, policy: str) -> keras.Model:
    hidden = [keras.layers.Dense(units, activation="relu", dtype=policy) for units in config.hidden_units]
    inputs = keras.Input((len(mean),))
    return keras.Sequential([inputs, _normalization(mean, std), *hidden, _output(labels)], name="ann")


def _lstm(config: LstmConfig, timesteps: int, mean: Array, std: Array, labels: int, policy: str) -> keras.Model:
    return keras.Sequential(
        [
            keras.Input((timesteps, len(mean))),
            _normalization(mean, std),
            keras.layers.LSTM(config.units, return_sequences=True, dtype=policy),
            keras.layers.Flatten(),  # (batch, timestep × units)
            _output(labels),
        ],
        name="lstm",
    )
