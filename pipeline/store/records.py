"""What is said of a store beside its arrays: its attributes, and a record of each finished shard."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.outputs import OutputFolder
from pipeline.storage import write_atomically

SUM_UNIT = 2.0**-20


@dataclass(frozen=True)
class RecordingOutcome:
    """What a shard made of one recording: `recording` is its row in the manifest."""

    recording: int
    status: str
    reason: str
    decoded_frames: int
    sequences_written: int


@dataclass(frozen=True)
class ShardRecord:
    """Proof that a shard is finished, and all that the driver needs to know of it.

    Without checksums it is that of a shard which is being written anew, and of which `outcomes` holds what is kept.
    `train_sum` and `train_sum_squares` are over the frames of valid training sequences, one value a coefficient, in
    units of SUM_UNIT: integers add up to the same total in any order.
    """

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

    def to_json(self) -> str:
        """Return the record as one line of JSON."""
        outcomes = [vars(outcome) for outcome in self.outcomes]
        return json.dumps({**vars(self), "outcomes": outcomes}, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> "ShardRecord":
        """Read what `to_json` wrote."""
        fields = json.loads(text)
        fields["outcomes"] = tuple(RecordingOutcome(**outcome) for outcome in fields["outcomes"])
        fields["train_sum"] = tuple(fields["train_sum"])
        fields["train_sum_squares"] = tuple(fields["train_sum_squares"])
        return cls(**fields)


def attributes(output: OutputFolder) -> dict[str, Any] | None:
    """Return the attributes of a store whose creation was finished, else None."""
    try:
        found: dict[str, Any] = json.loads((output.store / "zarr.json").read_bytes()).get("attributes", {})
    except FileNotFoundError:
        return None
    return found if "schema_version" in found else None


def mark_finished(output: OutputFolder, record: ShardRecord) -> None:
    """Say that a shard is finished; the last write of its task."""
    write_atomically(output.shard_record(record.index), record.to_json().encode())


def read_record(output: OutputFolder, index: int) -> ShardRecord:
    """Return the record of the finished shard `index`."""
    return ShardRecord.from_json(output.shard_record(index).read_text(encoding="utf-8"))


def find_record(output: OutputFolder, index: int) -> ShardRecord | None:
    """Return the record of shard `index`, or None where there is none yet."""
    try:
        return read_record(output, index)
    except FileNotFoundError:
        return None


def finished(output: OutputFolder) -> set[int]:
    """Return the indices of the shards that are marked finished."""
    if not output.shards.exists():
        return set()
    return {int(path.stem) for path in output.shards.iterdir() if path.suffix == ".json"}
