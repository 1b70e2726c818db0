"""The outcomes of recordings in many shards, as arrays."""

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from pipeline.schema import STATUSES
from pipeline.store.records import ShardRecord


@dataclass(frozen=True)
class Outcomes:
    """The outcomes in some records, one an entry; see `RecordingOutcome`.

    `shard`, `recording`, `decoded_frames` and `sequences_written` are (outcome,) int64. `status` is (outcome,) int8:
    positions in STATUSES. `reason` is (outcome,) int32: positions in `reasons`, of which the first is empty.
    """

    shard: NDArray[np.int64]
    recording: NDArray[np.int64]
    status: NDArray[np.int8]
    reason: NDArray[np.int32]
    decoded_frames: NDArray[np.int64]
    sequences_written: NDArray[np.int64]
    reasons: tuple[str, ...]

    @classmethod
    def of(cls, records: Iterable[ShardRecord]) -> Self:
        """Return the outcomes in `records`, in their order; holds one record at a time."""
        reasons, numbers = {"": 0}, array("q")
        for record in records:
            for outcome in record.outcomes:
                reason = reasons.setdefault(outcome.reason, len(reasons))
                numbers.extend((
                    record.index, outcome.recording, STATUSES.index(outcome.status), reason, outcome.decoded_frames,
                    outcome.sequences_written,
                ))  # fmt: skip
        shard, recording, status, reason_code, decoded, written = np.array(numbers, np.int64).reshape(-1, 6).T
        return cls(
            shard, recording, status.astype(np.int8), reason_code.astype(np.int32), decoded, written, tuple(reasons)
        )  # fmt: skip
