"""A model's folder: the network, and the description of its input and output.

    model.keras    the network, as Keras saves it
    labels.json    a `Description`

Only loading or using a network needs TensorFlow, which takes seconds to load.
"""

import io
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from upath import UPath

from pipeline.errors import PipelineError, counted, in_one_line
from pipeline.storage import read_json, write_atomically

if TYPE_CHECKING:
    import keras

    from model.data.store_reader import Store

NETWORK, DESCRIPTION = "model.keras", "labels.json"
FILES = (NETWORK, DESCRIPTION)
"""The files that a usable model consists of."""

LOG_FLOOR = 1e-7
"""Smallest probability with a logarithm of its own. Next to 1, float32 has no finer steps: with this floor, a sigmoid
resolves its first language as finely as its second."""


class Description(BaseModel):
    """What a network takes and what it returns: the content of labels.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    """Languages in the order of the network's outputs."""
    level: Literal["frame", "sequence"]
    """What the network classifies."""
    timesteps: Annotated[int, Field(ge=1)]
    """Frames in a sequence."""
    features: dict[str, Any]
    """Settings of the features, as in the store's attributes."""

    @classmethod
    def read(cls, folder: UPath) -> Self:
        """Read labels.json; raises PipelineError if it is missing or damaged."""
        path = folder / DESCRIPTION
        try:
            return read_json(path, cls, "run train again")
        except FileNotFoundError:
            raise PipelineError(f"{path} is missing; run train again") from None

    def write(self, folder: UPath) -> None:
        """Write labels.json."""
        write_atomically(folder / DESCRIPTION, self.model_dump_json(indent=1).encode())

    def misfit(self, store: "Store") -> str | None:
        """Return why the network cannot be used on a store, or None if it can.

        The settings of the features must be equal; the length of a sequence matters only to a network of sequences.
        """
        wanted, found = dict(self.features), dict(store.attributes["config"]["features"])
        if self.level == "sequence":
            wanted["timesteps"], found["timesteps"] = self.timesteps, store.timesteps
        for name, value in found.items():
            if wanted.get(name) != value:
                return f"trained on features with {name} {wanted.get(name)}, but the store has {name} {value}"
        return None


@dataclass(frozen=True)
class Bundle:
    """A network with its description."""

    network: "keras.Model"
    description: Description

    @classmethod
    def load(cls, folder: UPath) -> Self:
        """Load a model's folder; raises PipelineError if it is incomplete or damaged."""
        description, network = Description.read(folder), load_model(folder / NETWORK)
        labels, outputs = len(description.labels), network.output_shape[-1]
        if outputs != labels and (outputs, labels) != (1, 2):
            raise PipelineError(
                f"{folder}: {NETWORK} and {DESCRIPTION} are of different trainings ({counted(outputs, 'output')}, "
                f"{counted(labels, 'label')}); run train again"
            )
        return cls(network, description)

    def save(self, folder: UPath) -> None:
        """Write model.keras and labels.json."""
        write_atomically(folder / NETWORK, model_bytes(self.network))
        self.description.write(folder)

    def log_posteriors(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return log posteriors (sequence, step, label) float64 for features (sequence, timestep, feature).

        A network of frames has one step per timestep, a network of sequences has one step. Raises PipelineError if the
        network's weights are not finite, or if memory runs out.
        """
        from model.networks import build  # noqa: PLC0415 loads TensorFlow

        frames = self.description.level == "frame"
        inputs = features.reshape(-1, features.shape[2]) if frames else features
        with _memory_errors(f"the network {self.network.name}"):
            posteriors = build.probabilities(self.network, inputs)
        if not np.isfinite(posteriors).all():
            raise PipelineError(
                f"the network {self.network.name} answers NaN, its training diverged; run train again with a lower "
                "learning_rate"
            )
        steps = features.shape[1] if frames else 1
        return np.log(np.maximum(posteriors, LOG_FLOOR)).reshape(len(features), steps, -1)


def version_of(folder: UPath) -> str:
    """Return the version of the model in `folder`: a digest of its weights and its description, 16 hex digits.

    The rest of model.keras, such as the time of saving, is left out: training again to the same weights gives the
    same version. Raises PipelineError if a file is missing or damaged.
    """
    state = xxhash.xxh3_128()
    try:
        with zipfile.ZipFile(io.BytesIO((folder / NETWORK).read_bytes())) as archive:
            if archive.testzip() is not None:
                raise zipfile.BadZipFile
            state.update(archive.read("model.weights.h5"))
        state.update((folder / DESCRIPTION).read_bytes())
    except FileNotFoundError as error:
        raise PipelineError(f"{folder} is not a complete model: {error.filename or error} is missing") from None
    except (zipfile.BadZipFile, KeyError):
        raise PipelineError(f"{folder / NETWORK} is damaged") from None
    return state.hexdigest()[:16]


@contextmanager
def _memory_errors(what: str) -> Iterator[None]:
    """Raise TensorFlow's error for a lack of memory as a PipelineError of one line."""
    import tensorflow as tf  # noqa: PLC0415

    try:
        yield
    except tf.errors.ResourceExhaustedError:
        raise PipelineError(
            f"{what}: TensorFlow ran out of memory; use a machine with more, or a smaller model"
        ) from None


def model_bytes(model: "keras.Model") -> bytes:
    """Return a model as the content of a .keras file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NETWORK
        model.save(path)
        return path.read_bytes()


def load_model(path: UPath) -> "keras.Model":
    """Load a .keras file from a path or URL, with its LSTM layers accelerated as `build` does.

    Raises PipelineError if the file is missing or damaged, or if memory runs out.
    """
    import keras  # noqa: PLC0415 loads TensorFlow

    from model.networks.lstm_cpu import accelerate  # noqa: PLC0415 loads TensorFlow

    try:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / NETWORK
            local.write_bytes(path.read_bytes())
            with _memory_errors(str(path)):
                model = keras.saving.load_model(local)
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing; run train again") from None
    except (ValueError, OSError) as error:
        raise PipelineError(f"{path} is not a Keras model: {in_one_line(error)}") from None
    accelerate(model)
    return model
