"""A model's folder: the network, and the description of its input and output.

    model.keras    the network, as Keras saves it, with a copy of labels.json
    labels.json    a `Description`

The copy shows whether both files are of the same training.

Only loading or using a network needs TensorFlow, which takes seconds to load.
"""

import tempfile
import textwrap
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

from model import archive
from pipeline.durable_files import write_atomically
from pipeline.errors import PipelineError, counted, in_one_line
from pipeline.storage import refusing_damage

if TYPE_CHECKING:
    import keras

    from model.data.store_reader import Store

NETWORK, DESCRIPTION = "model.keras", "labels.json"
FILES = (NETWORK, DESCRIPTION)
"""The files that a usable model consists of."""

CHECKPOINTS = "checkpoints"
"""The folder of the states of a training, in the folder of its model."""

TRAIN_AGAIN = "run train again"
"""The remedy for a damaged model."""

MAX_REASON = 300
"""Characters of an error message of Keras, which may hold the whole configuration of a network."""

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
        return cls.parse(_content(folder / DESCRIPTION, TRAIN_AGAIN), folder)

    @classmethod
    def parse(cls, content: bytes, folder: UPath) -> Self:
        """Return the description in the labels.json of `folder`; raises PipelineError if it is damaged."""
        with refusing_damage(folder / DESCRIPTION, TRAIN_AGAIN):
            return cls.model_validate_json(content)

    @property
    def content(self) -> bytes:
        """The content of labels.json."""
        return self.model_dump_json(indent=1).encode()

    def write(self, folder: UPath) -> None:
        """Write labels.json."""
        write_atomically(folder / DESCRIPTION, self.content)

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
class ModelFiles:
    """The content of the files of a model, which are whole and of the same training.

    `members` are those of model.keras.
    """

    folder: UPath
    members: archive.Members
    description: Description

    @classmethod
    def read(cls, folder: UPath) -> Self:
        """Read a model's folder; raises PipelineError if a file is missing, damaged or of another training."""
        content = _content(folder / DESCRIPTION, TRAIN_AGAIN)
        members = archive.read(folder / NETWORK, TRAIN_AGAIN)
        _check_copy(members, content, folder, TRAIN_AGAIN)
        return cls(folder, members, Description.parse(content, folder))


@dataclass(frozen=True)
class Bundle:
    """A network with its description."""

    network: "keras.Model"
    description: Description

    @classmethod
    def load(cls, folder: UPath) -> Self:
        """Load a model's folder; raises PipelineError if it is incomplete or damaged."""
        return cls.of(ModelFiles.read(folder))

    @classmethod
    def of(cls, files: ModelFiles) -> Self:
        """Load a model; raises PipelineError if Keras cannot load it."""
        description, network = files.description, load_members(files.members, files.folder / NETWORK)
        labels, outputs = len(description.labels), network.output_shape[-1]
        if outputs != labels and (outputs, labels) != (1, 2):
            raise PipelineError(
                f"{files.folder}: {NETWORK} and {DESCRIPTION} are of different trainings "
                f"({counted(outputs, 'output')}, {counted(labels, 'label')}); run train again"
            )
        return cls(network, description)

    def save(self, folder: UPath) -> None:
        """Write model.keras and labels.json."""
        labels = self.description.content
        write_atomically(folder / NETWORK, archive.pack({**saved_members(self.network), archive.LABELS: labels}))
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


def version_of(folder: UPath, remedy: str = TRAIN_AGAIN) -> str:
    """Return the version of the model in `folder`: a digest of its weights and its description, 16 hex digits.

    The rest of model.keras is left out: training again to the same weights gives the same version. Raises
    PipelineError, with the remedy, if a file is missing, damaged or of another training.
    """
    members = archive.read(folder / NETWORK, remedy)
    weights, description = members.get(archive.WEIGHTS), _content(folder / DESCRIPTION, remedy)
    if weights is None:
        raise PipelineError(f"{folder / NETWORK} is damaged; {remedy}")
    _check_copy(members, description, folder, remedy)
    state = xxhash.xxh3_128(weights)
    state.update(description)
    return state.hexdigest()[:16]


def _check_copy(members: archive.Members, description: bytes, folder: UPath, remedy: str) -> None:
    """Raise PipelineError if labels.json differs from its copy in model.keras; earlier versions wrote no copy."""
    if members.get(archive.LABELS, description) != description:
        raise PipelineError(f"{folder / DESCRIPTION} is not what training wrote together with {NETWORK}; {remedy}")


def _content(path: UPath, remedy: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing; {remedy}") from None


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


def saved_members(model: "keras.Model") -> dict[str, bytes]:
    """Return a model as Keras saves it: the members of a .keras file, equal for equal models."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / NETWORK
        model.save(path)
        return archive.reproducible(archive.unpack(path.read_bytes()))


def model_bytes(model: "keras.Model") -> bytes:
    """Return a model as the content of a .keras file."""
    return archive.pack(saved_members(model))


def load_model(path: UPath) -> "keras.Model":
    """Load a .keras file from a path or URL; see `load_members`. Raises PipelineError if it is missing or damaged."""
    return load_members(archive.read(path, TRAIN_AGAIN), path)


def load_members(members: archive.Members, path: UPath) -> "keras.Model":
    """Load the network in the members of a .keras file, with its LSTM layers accelerated as `build` does.

    `path` is the place of the file, for messages. Keras's safe mode loads no code from it. Raises PipelineError if
    Keras cannot load it, or if memory runs out.
    """
    import keras  # noqa: PLC0415 loads TensorFlow

    from model.networks.lstm_cpu import accelerate  # noqa: PLC0415 loads TensorFlow

    try:
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / NETWORK
            # Keras unpacks an archive with further members onto the disk
            local.write_bytes(archive.pack(archive.of_keras(members)))
            with _memory_errors(str(path)):
                model = keras.saving.load_model(local, safe_mode=True)
    except PipelineError:
        raise
    except Exception as error:  # noqa: BLE001 Keras passes on whatever its parsing meets
        reason = textwrap.shorten(in_one_line(error), MAX_REASON, placeholder=" …")
        raise PipelineError(f"{path} is not a Keras model: {reason}") from None
    accelerate(model)
    return model
