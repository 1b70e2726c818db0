"""metrics/NAME.json: the metrics of a model on the test split of a store."""

from collections.abc import Iterable, Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, Field
from upath import UPath

from pipeline.durable_files import write_atomically
from pipeline.outputs import OutputFolder
from pipeline.storage import read_json


class _Written(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LabelScores(_Written):
    """Precision, recall and F1 of one language, and its number of items."""

    precision: float
    recall: float
    f1: float
    n: int


class Interval(_Written):
    """An interval of a figure per recording, from resampling speakers; without bounds if there is one speaker."""

    low: float | None
    high: float | None
    confidence: float
    speakers: int


class LevelMetrics(BaseModel):
    """The metrics over `n` items: frames, sequences or recordings. Further metrics are there under their names.

    `confusion` counts items: `[true label][predicted label]`.
    """

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, float] = Field(init=False)

    n: int
    accuracy: float
    macro_f1: float
    confusion: tuple[tuple[int, ...], ...]
    per_label: dict[str, LabelScores]
    macro_f1_interval: Interval | None = None

    @property
    def values(self) -> dict[str, float]:
        """Every metric by its name."""
        return {"accuracy": self.accuracy, "macro_f1": self.macro_f1, **self.__pydantic_extra__}


class Example(_Written):
    """A test recording: row of the manifest, code of its language, first sequence.

    `probabilities` is `[sequence][label]`.
    """

    recording: int
    label: int
    first_sequence: int
    probabilities: tuple[tuple[float, ...], ...]


class StoreIdentity(_Written):
    """The store that a model was evaluated on."""

    config_hash: str
    manifest_digest: str


class Metrics(_Written):
    """The content of a metrics file.

    `model` and `config_hash` are those of a trained model; `version` and `as_of` those of a model that was in service
    at that time. `labels` are the languages of the store, then further languages of the model.
    """

    model: str | None = None
    config_hash: str | None = None
    version: str | None = None
    as_of: str | None = None
    labels: tuple[str, ...]
    frame: LevelMetrics | None = None
    sequence: LevelMetrics
    recording: LevelMetrics
    labels_without_test: tuple[str, ...]
    labels_without_validation: tuple[str, ...]
    example: Example | None
    store: StoreIdentity

    @property
    def levels(self) -> Mapping[str, LevelMetrics]:
        """The metrics at each level, by its name."""
        found = {"frame": self.frame, "sequence": self.sequence, "recording": self.recording}
        return {name: level for name, level in found.items() if level is not None}

    @classmethod
    def read(cls, path: UPath) -> Self:
        """Read a metrics file; raises PipelineError if it is damaged."""
        return read_json(path, cls, "run evaluate again")

    def write(self, path: UPath) -> None:
        """Write a metrics file."""
        write_atomically(path, self.model_dump_json(indent=1, exclude_unset=True).encode())


def metrics_of_models(output: OutputFolder, models: Iterable[str]) -> dict[str, Metrics]:
    """Return the metrics of those `models` that have been evaluated; raises PipelineError for a damaged file."""
    return {name: Metrics.read(output.metrics(name)) for name in models if output.metrics(name).exists()}
