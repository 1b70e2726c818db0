"""run.json: the settings of an output folder, and what each stage did with which inputs."""

import platform
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any, Final

from pydantic import AwareDatetime, BaseModel, ConfigDict, SerializeAsAny, ValidationError, field_validator
from upath import UPath

from pipeline.digests import bytes_digest
from pipeline.durable_files import write_atomically
from pipeline.errors import UsageError
from pipeline.outputs import OutputFolder
from pipeline.schema import AS_OF
from pipeline.storage import file_digest

LIBRARIES: Final = (
    "dask", "distributed", "keras", "librosa", "numpy", "scipy", "soundfile", "soxr", "tensorflow", "xarray", "zarr",
)  # fmt: skip


class StageRecord(BaseModel):
    """What a stage did last.

    `key` is a digest of its inputs and settings. `outputs` maps files, relative to the output folder, to digests of
    their content; None stands for a file that did not exist. `wall_s` is the duration in seconds.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    finished_at: AwareDatetime
    outputs: Mapping[str, str | None]
    wall_s: float | None = None


class ScanRecord(StageRecord):
    """The manifest: its recordings, the files that are not audio, appends, and recordings masked by `--prune`."""

    recordings: int | None = None
    ignored_files: int | None = None
    appends: int | None = None
    masked: int | None = None


class ExtractRecord(StageRecord):
    """The last extraction and its cost.

    `progress` maps the files in the report folder that show its progress to their digests.

    `recordings` counts by status. `shards_new` of `shards` were written, with `audio_s_new` seconds of audio.
    `busy_s` is the time of all workers. A recording counts in `bytes_read` as often as it was read. Lost workers and
    retries are None if the scheduler did not report them.
    """

    recordings: Mapping[str, int] = {}
    shards: int | None = None
    shards_new: int | None = None
    audio_s_new: float | None = None
    busy_s: float | None = None
    workers: int | None = None
    bytes_read: int | None = None
    bytes_written: int | None = None
    lost_workers: int | None = None
    retries: int | None = None
    dashboard: str | None = None
    audio_h_per_core_h: float | None = None
    price_per_1000_audio_h: float | None = None
    progress: Mapping[str, str | None] = {}


class VerifyRecord(StageRecord):
    """What was read: shards, files and bytes; and how many of the files are damaged."""

    shards: int | None = None
    files: int | None = None
    size_bytes: int | None = None
    damaged: int = 0


class CompactRecord(StageRecord):
    """What the last compaction removed, and how many sequences it wrote."""

    appends: int | None = None
    masked: int | None = None
    sequences: int | None = None


class TrainRecord(StageRecord):
    """One model's training: epochs, the best of them (counted from 1), and means over the epochs.

    `input_wait` is the fraction of the training time that was spent waiting for input.
    """

    epochs: int | None = None
    best_epoch: int | None = None
    parameters: int | None = None
    steps_per_s: float | None = None
    input_wait: float | None = None


class EvaluateRecord(StageRecord):
    """One model's accuracies, as fractions; per frame only if the model classifies frames."""

    frame_accuracy: float | None = None
    sequence_accuracy: float | None = None
    recording_accuracy: float | None = None


RECORDS: Final[Mapping[str, type[StageRecord]]] = {
    "scan": ScanRecord,
    "extract": ExtractRecord,
    "verify": VerifyRecord,
    "compact": CompactRecord,
    "train": TrainRecord,
    "evaluate": EvaluateRecord,
    "report": StageRecord,
}

DELETE: Final = "delete it: every stage is then checked anew"
"""The remedy for a run.json that is damaged."""

SHARD_DIGESTS: Final = "shards/_digests"
"""An output of extract that earlier versions did not write."""


END: Final = b'"\n}'
"""What follows the digest in run.json."""


class RunFile(BaseModel):
    """The content of run.json; `stages` is keyed by stage, or STAGE/MODEL for the stages that run once per model.

    `digest` is that of all bytes before it, None in files of earlier versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus: str | None = None
    config: Mapping[str, Any] = {}
    config_hash: str | None = None
    versions: Mapping[str, str] = {}
    stages: Mapping[str, SerializeAsAny[StageRecord]]
    digest: str | None = None

    @property
    def content(self) -> bytes:
        """The bytes of the file, with their digest."""
        text = self.model_copy(update={"digest": ""}).model_dump_json(indent=1, exclude_none=False)
        before = text.encode().removesuffix(END)
        return before + bytes_digest([before]).encode() + END

    def is_content(self, content: bytes) -> bool:
        """Whether `content`, from which this was read, is as a command wrote it."""
        before = content[: -len(END) - len(self.digest or "")]
        return self.digest is None or bytes_digest([before]) == self.digest

    @property
    def accounted(self) -> bool:
        """Whether the digests of all files of the store are recorded, which earlier versions did not do."""
        extracted = self.stages.get("extract")
        return extracted is not None and extracted.outputs.get(SHARD_DIGESTS) is not None

    @field_validator("stages", mode="before")
    @classmethod
    def _typed(cls, stages: Any) -> Any:
        if not isinstance(stages, Mapping):
            return stages
        return {name: _type_of(name).model_validate(stage) for name, stage in stages.items()}


def _type_of(stage: str) -> type[StageRecord]:
    """Return the type of a stage's record; raises ValueError for a stage that does not exist."""
    kind = stage.partition("/")[0]
    if kind not in RECORDS:
        raise ValueError(f"there is no stage {kind!r}")
    return RECORDS[kind]


def read(output: OutputFolder) -> RunFile:
    """Return the content of run.json, empty if there is no such file; raises UsageError for one that is damaged."""
    return _read(output)[0]


def _read(output: OutputFolder) -> tuple[RunFile, bool]:
    """Return the content of run.json, and whether it is as a command wrote it."""
    try:
        content = output.run.read_bytes()
        found = RunFile.model_validate_json(content)
    except FileNotFoundError:
        return RunFile(stages={}), True
    except ValidationError:
        raise UsageError(f"{output.run} is not the record of a run; {DELETE}") from None
    return found, found.is_content(content)


def reported(stages: Mapping[str, StageRecord]) -> dict[str, StageRecord]:
    """Return the stages that a report shows: not itself, and no evaluations of models that served earlier."""
    return {name: stage for name, stage in stages.items() if name != "report" and f"/{AS_OF}" not in name}


def changed_outputs(output: OutputFolder, run: RunFile, stage: str) -> list[str]:
    """Return the outputs of `stage` that are not as it left them, by their names below the output folder."""
    found = run.stages.get(stage)
    outputs = {} if found is None else found.outputs
    return [name for name, digest in outputs.items() if _digest(output.root / name) != digest]


class RunRecord:
    """The record of an output folder: read on creation, and written after each change."""

    def __init__(self, output: OutputFolder) -> None:
        self._output = output
        self._file, whole = _read(output)
        self.altered = not whole
        """Whether run.json was not as the last command wrote it; people may edit it."""
        self.changed = False
        """Whether a stage has done anything since then."""
        self.saved = True
        """Whether changes are written to run.json; if not, they are kept until the end of this run."""

    @property
    def stages(self) -> Mapping[str, StageRecord]:
        """What each stage did last, by name."""
        return self._file.stages

    @property
    def file(self) -> RunFile:
        """The content of run.json."""
        return self._file

    def describe(self, *, corpus: str | None, config: Mapping[str, Any], config_hash: str) -> None:
        """Record the settings of this run, and the versions of Python and the libraries.

        Without a corpus, that of an earlier run is kept. Raises OSError if run.json cannot be written.
        """
        self._write(
            corpus=corpus or self._file.corpus, config=config, config_hash=config_hash,
            versions={"python": platform.python_version(), **{name: metadata.version(name) for name in LIBRARIES}},
        )  # fmt: skip

    def unchanged(self, stage: str, key: str) -> bool:
        """Whether `stage` has run with these inputs and settings (`key`), and its outputs are as it left them."""
        found = self.stages.get(stage)
        return found is not None and found.key == key and not self.changed_outputs(stage)

    def changed_outputs(self, stage: str) -> list[str]:
        """Return the outputs of `stage` that are not as it left them, by their names below the output folder."""
        return changed_outputs(self._output, self._file, stage)

    def finish(self, stage: str, key: str, outputs: Iterable[UPath], **facts: Any) -> None:
        """Record that `stage` is done: the digests of its outputs, and the `facts` of its record's type."""
        self.changed = True
        record = _type_of(stage)(
            key=key, finished_at=datetime.now(UTC).replace(microsecond=0), outputs=self.digests(outputs), **facts
        )
        self._write(stages={**self.stages, stage: record})

    def confirm(self, stage: str, key: str, outputs: Iterable[UPath]) -> None:
        """Record that `stage` has nothing to do for `key` either; the facts of its last run are kept."""
        done = self.stages.get(stage)
        if done is None:
            self.finish(stage, key, outputs)
            return
        kept = done.model_copy(update={"key": key, "outputs": self.digests(outputs)})
        self._write(stages={**self.stages, stage: kept})

    def forget(self, *stages: str) -> None:
        """Remove the records of stages whose outputs are replaced, or were changed by another program."""
        self.changed = True
        self._write(stages={name: stage for name, stage in self.stages.items() if name not in stages})

    def digests(self, outputs: Iterable[UPath]) -> dict[str, str | None]:
        """Return {path below the output folder: digest of the content, or None if there is no such file}."""
        prefix = len(self._output.root.parts)
        return {"/".join(path.parts[prefix:]): _digest(path) for path in outputs}

    def _write(self, **changes: Any) -> None:
        self._file = self._file.model_copy(update=changes)
        if self.saved:
            write_atomically(self._output.run, self._file.content)


def _digest(path: UPath) -> str | None:
    found = file_digest(path)
    return found.digest if found else None
