"""Networks whose answers are known without training."""

import keras
import numpy as np
from numpy.typing import NDArray

from tests.support.model_stores import TIMESTEPS


def frame_network(labels: int = 3) -> keras.Model:
    """Return a network of frames whose posteriors are the softmax of its input."""
    layers = [keras.Input((labels,)), keras.layers.Dense(labels, activation="softmax", use_bias=False)]
    model = keras.Sequential(layers)
    model.set_weights([np.eye(labels)])
    return model


def sequence_network(timesteps: int = TIMESTEPS) -> keras.Model:
    """Return a network of sequences whose posteriors are the softmax of the mean of its input."""
    layers = [keras.Input((timesteps, 3)), keras.layers.GlobalAveragePooling1D(), keras.layers.Softmax()]
    return keras.Sequential(layers)


def log_softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return the logarithm of the softmax over the last axis."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
