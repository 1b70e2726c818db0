"""The attributes of a store, and the completion record of each of its shards."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.durable_files import write_atomically
from pipeline.errors import PipelineError, UsageError
from pipeline.outputs import OutputFolder, record_name
from pipeline.schema import version_mismatch
from pipeline.storage import file_contents, file_names, read_json, refusing_damage

SUM_UNIT: Final = 2.0**-20

REPAIR: Final = "run extract --repair, which makes it again"
"""The remedy for a file of a store that is damaged."""

_RECORD: Final = re.compile(r"(\d{8,18})\.json", re.ASCII)
"""The name of a record's file."""

Status = Literal["ok", "short", "filtered", "failed"]
"""The statuses of `pipeline.schema.STATUSES`."""


class StoreAttributes(BaseModel):
    """The attributes of a store.

    `config` are the settings that decide what a store holds, and `config_hash` is their digest; `manifest_digest` is
    that of the manifest. `split_runs` maps each split to the sequences [start, stop) of its runs, `versions` each
    library that computes features to its version. Attributes that others add are ignored.
    """

    model_config = ConfigDict(frozen=True)

    schema_version: int
    config: Mapping[str, Any]
    config_hash: str
    manifest_digest: str
    split_runs: Mapping[str, Sequence[Sequence[int]]]
    versions: Mapping[str, str]


class RecordingOutcome(BaseModel):
    """The outcome of a recording in one shard.

    `recording` is the row of the manifest. `reason` is empty if the status is ok, unless the recording holds no sound.
    `decoded_frames` counts the frames of the whole recording, `sequences_written` the valid sequences in this shard.

    `size_bytes` and `modified_ns` are the state of the file when the recording failed (see `pipeline.storage`), and 0
    in other outcomes. `transient` is true if the file system was the cause.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recording: int
    status: Status
    reason: str
    decoded_frames: int
    sequences_written: int
    size_bytes: int = 0
    modified_ns: int = 0
    transient: bool = False


class ShardRecord(BaseModel):
    """The record of a finished shard, or, without checksums, of a shard that is being rewritten.

    `checksums` maps each variable to the xxh3_128 of its stored object. `outcomes` has the recordings of the shard in
    their order; while it is being rewritten, those that are kept. `train_count` is the number of frames of valid
    training sequences; `train_sum` and `train_sum_squares` are over these frames, one value per feature, in units of
    SUM_UNIT: integers, so that totals do not depend on the order of the shards.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int
    checksums: Mapping[str, str]
    outcomes: tuple[RecordingOutcome, ...]
    train_count: int
    train_sum: tuple[int, ...]
    train_sum_squares: tuple[int, ...]

    @property
    def finished(self) -> bool:
        """Whether the shard is written."""
        return bool(self.checksums)


class _Group(BaseModel):
    """The attributes in the metadata of a Zarr group."""

    attributes: Mapping[str, Any] = {}


def read_attributes(output: OutputFolder) -> StoreAttributes | None:
    """Return the attributes of the store, or None if it has not all of them.

    There is no store then, its creation was interrupted, or another program removed attributes. Raises UsageError for
    a store of another schema version, and PipelineError for metadata that cannot be read.
    """
    path = output.store / "zarr.json"
    try:
        found = read_json(path, _Group, REPAIR).attributes
    except FileNotFoundError:
        return None
    if "schema_version" in found:
        mismatch = version_mismatch(str(output.store), found["schema_version"])
        if mismatch:
            raise UsageError(mismatch)
    if not found.keys() >= StoreAttributes.model_fields.keys():
        return None
    with refusing_damage(path, REPAIR):
        return StoreAttributes.model_validate(found)


def write_record(output: OutputFolder, record: ShardRecord) -> None:
    """Write the record of a shard."""
    write_atomically(output.shard_record(record.index), content(record))


def content(record: ShardRecord) -> bytes:
    """Return the content of a record's file."""
    return record.model_dump_json(exclude_defaults=True).encode()


def read_record(output: OutputFolder, index: int) -> ShardRecord:
    """Return the record of shard `index`; raises PipelineError for one that cannot be read."""
    return parsed(output, index, output.shard_record(index).read_bytes())


def parsed(output: OutputFolder, index: int, found: bytes) -> ShardRecord:
    """Return the record of shard `index` from the content of its file; raises PipelineError for damage."""
    try:
        return ShardRecord.model_validate_json(found)
    except ValidationError:
        with refusing_damage(output.shard_record(index), "run extract, which writes the shard anew"):
            raise


def find_record(output: OutputFolder, index: int) -> ShardRecord | None:
    """Return the record of shard `index`, or None if there is none that can be read."""
    try:
        return read_record(output, index)
    except (FileNotFoundError, PipelineError):
        return None


def contents(output: OutputFolder, indices: Iterable[int]) -> Iterator[bytes | None]:
    """Yield the content of the record of each of a few shards, None where there is none."""
    return file_contents(output.shards, map(record_name, indices))


def recorded_shards(output: OutputFolder) -> NDArray[np.int64]:
    """Return the indices of the shards that have a record: (shard,) int64 in rising order."""
    found = filter(None, map(_RECORD.fullmatch, file_names(output.shards)))
    return np.sort(np.fromiter((int(name[1]) for name in found), np.int64))
