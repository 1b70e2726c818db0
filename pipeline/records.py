"""What is said of a store beside its arrays: its attributes, and a record of each finished shard."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.schema import Layout, write_atomically

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


def attributes(layout: Layout) -> dict[str, Any] | None:
    """Return the attributes of a store whose creation was finished, else None."""
    try:
        found: dict[str, Any] = json.loads((layout.store / "zarr.json").read_bytes()).get("attributes", {})
    except FileNotFoundError:
        return None
    return found if "schema_version" in found else None


def mark_finished(layout: Layout, record: ShardRecord) -> None:
    """Say that a shard is finished; the last write of its task."""
    write_atomically(layout.shard_record(record.index), record.to_json().encode())


def read_record(layout: Layout, index: int) -> ShardRecord:
    """Return the record of the finished shard `index`."""
    return ShardRecord.from_json(layout.shard_record(index).read_text(encoding="utf-8"))


def find_record(layout: Layout, index: int) -> ShardRecord | None:
    """Return the record of shard `index`, or None where there is none yet."""
    try:
        return read_record(layout, index)
    except FileNotFoundError:
        return None


def finished(layout: Layout) -> set[int]:
    """Return the indices of the shards that are marked finished."""
    if not layout.shards.exists():
        return set()
    return {int(path.stem) for path in layout.shards.iterdir() if path.suffix == ".json"}
