"""The attributes of a store, and the completion record of each of its shards."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict

from pipeline.durable_files import write_atomically
from pipeline.errors import PipelineError, UsageError
from pipeline.outputs import OutputFolder
from pipeline.schema import version_mismatch
from pipeline.storage import file_digests, is_local, read_json, refusing_damage

SUM_UNIT: Final = 2.0**-20

REPAIR: Final = "run extract --repair, which makes it again"
"""The remedy for a file of a store that is damaged."""

_DIGEST: Final = re.compile(rb"^([0-9a-f]{32})  (\d{8,})\.json$", re.MULTILINE)
"""A line of the digests of shard records."""

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
    return read_json(output.shard_record(index), ShardRecord, "run extract, which writes the shard anew")


def find_record(output: OutputFolder, index: int) -> ShardRecord | None:
    """Return the record of shard `index`, or None if there is none that can be read."""
    try:
        return read_record(output, index)
    except (FileNotFoundError, PipelineError):
        return None


def recorded_shards(output: OutputFolder) -> set[int]:
    """Return the indices of the shards that have a record."""
    if not output.shards.exists():
        return set()
    files = (path for path in output.shards.iterdir() if path.suffix == ".json")
    return {int(path.stem) for path in files if path.stem.isdecimal()}


def digests(output: OutputFolder, indices: Collection[int]) -> dict[int, str]:
    """Return the digest of the record, as it is now, of each of the shards `indices` that has one."""
    found = file_digests((output.shard_record(index) for index in indices), local=is_local(output.root))
    return {index: file.digest for index, file in zip(indices, found, strict=True) if file}


def write_digests(output: OutputFolder, found: Mapping[int, str]) -> None:
    """Write the digests of the records of finished shards, by shard."""
    write_atomically(output.shard_digests, listing(output, found))


def listing(output: OutputFolder, found: Mapping[int, str]) -> bytes:
    """Return the digests of records, by shard, as the lines of a file."""
    return "".join(f"{found[index]}  {output.shard_record(index).name}\n" for index in sorted(found)).encode()


def read_digests(output: OutputFolder) -> dict[int, str]:
    """Return the digests that the records of finished shards must have, by shard; lines that are damaged are left out.

    There are none for a shard that is being rewritten, nor in a folder of an earlier version.
    """
    try:
        content = output.shard_digests.read_bytes()
    except FileNotFoundError:
        return {}
    return {int(index): digest.decode() for digest, index in _DIGEST.findall(content)}


def release(output: OutputFolder, indices: Iterable[int]) -> None:
    """Remove the digests of the records of shards that are about to be rewritten."""
    found = read_digests(output)
    rewritten = found.keys() & set(indices)
    if rewritten:
        write_digests(output, {index: digest for index, digest in found.items() if index not in rewritten})
