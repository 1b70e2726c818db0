"""A model's folder: the network and all that is needed to use it."""

import tempfile
from pathlib import Path

import keras
from upath import UPath

from model.networks.lstm_cpu import accelerate


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
