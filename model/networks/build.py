"""Building, compiling and running a network of any kind.

A network takes features as they are stored: its first layer normalises them by the store's training statistics.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from model.config import ModelConfig
from model.networks.lstm_cpu import accelerate

Array = NDArray[np.floating]
BINARY = 2
ROWS = 4096
"""Rows given to a network at once, which bounds the memory of its activations."""
TENSOR_CORES = (7, 0)
"""The lowest compute capability of a GPU that multiplies float16 matrices faster than float32."""


def build(config: ModelConfig, timesteps: int, mean: Array, std: Array, labels: int) -> keras.Model:
    """Build and compile the network that `config` describes, for `labels` languages.

    `mean` and `std` are (feature,). The input is (batch, feature) or (batch, timestep, feature), by `config.level`.
    The output is (batch, 1) for two languages, the probability of the second, and (batch, label) for more.

    Raises ValueError if `config.network` returns another shape than (batch, width).
    """
    policy = precision(compute_capabilities())
    inputs = keras.Input((len(mean),) if config.level == "frame" else (timesteps, len(mean)))
    # normalisation and output are float32 in any policy: features are hundreds, and the loss needs the digits
    x = keras.layers.Normalization(axis=-1, mean=mean, variance=np.square(std), dtype="float32")(inputs)
    with _default_policy(policy):
        x = config.network(x)
    if len(x.shape) != 2:  # noqa: PLR2004 (batch, width)
        raise ValueError(f"kind {config.kind}: the network must return (batch, width), not {x.shape}")
    network = keras.Model(inputs, _output(labels)(x), name=config.kind)
    optimizer = getattr(keras.optimizers, config.optimizer)(config.learning_rate)
    if policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    loss = "binary_crossentropy" if labels == BINARY else "sparse_categorical_crossentropy"
    network.compile(optimizer=optimizer, loss=loss, metrics=["accuracy"], jit_compile=config.jit_compile)
    accelerate(network)
    return network


def parameters(config: ModelConfig, timesteps: int, features: int, labels: int) -> int:
    """Return the number of parameters of the network that `config` describes, without memory for them."""

    def count() -> int:
        with keras.StatelessScope(initialize_variables=False):
            inputs = keras.Input((features,) if config.level == "frame" else (timesteps, features))
            network = keras.Model(inputs, _output(labels)(config.network(inputs)))
        return sum(math.prod(weights.shape) for weights in network.weights)

    # Keras lists variables without values per thread, and gives all of them values at the end of the next scope
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(count).result()


def compute_capabilities() -> list[tuple[int, int]]:
    """Return the compute capability (major, minor) of each GPU, (0, 0) for one that has none."""
    gpus = tf.config.list_physical_devices("GPU")
    return [tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0)) for gpu in gpus]


def precision(capabilities: Sequence[tuple[int, int]]) -> str:
    """Return the Keras dtype policy for GPUs of these compute capabilities; without a GPU it is float32."""
    return "mixed_float16" if capabilities and min(capabilities) >= TENSOR_CORES else "float32"


def takes_frames(network: keras.Model) -> bool:
    """Whether a network classifies single frames rather than sequences."""
    return len(network.input_shape) == 2  # noqa: PLR2004 (batch, feature)


def probabilities(network: keras.Model, features: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the probability of each label, (row, label) float64.

    `features` is (row, feature) for a network of frames, (row, timestep, feature) for one of sequences.
    """
    parts = [network.predict_on_batch(features[i : i + ROWS]) for i in range(0, len(features), ROWS)]
    output = np.concatenate(parts).astype(np.float64)
    return np.concatenate([1 - output, output], axis=-1) if output.shape[-1] == 1 else output


@contextmanager
def _default_policy(policy: str) -> Iterator[None]:
    """Give the layers that are made inside this dtype policy."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _output(labels: int) -> keras.layers.Layer:
    if labels == BINARY:
        return keras.layers.Dense(1, activation="sigmoid", dtype="float32")
    return keras.layers.Dense(labels, activation="softmax", dtype="float32")
