"""The shards that still have to be written, and the recordings that failed and may succeed now."""

from array import array
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.extraction import ledger, record_ranges, retry
from pipeline.extraction.plan import Plan
from pipeline.extraction.record_ranges import RecordStates, StartExecutor
from pipeline.outputs import OutputFolder
from pipeline.sorted_arrays import among
from pipeline.store import record_digests, records


@dataclass(frozen=True)
class Pending:
    """What is pending of a plan.

    `shards`, (shard,) int64, still have to be written. `again`, (recording,) int64, are the recordings of written
    shards that failed and may succeed now: rows of the manifest. Both rise. `states` are those of the records.
    """

    shards: NDArray[np.int64]
    again: NDArray[np.int64]
    states: RecordStates


def find_pending(
    output: OutputFolder,
    plan: Plan,
    *,
    filter_silent: bool | None = None,
    states: RecordStates | None = None,
    executor: StartExecutor | None = None,
) -> Pending:
    """Return what still has to be written of `plan`.

    Pending are the shards without a record that can be read and is right (see `record_states`), those whose record
    lists other recordings than the plan does, because it was written for an earlier manifest, and those with a
    recording that failed and may succeed now. If `filter_silent` is given, shards with recordings without sound that
    were not treated in this way are pending, too. `states` are those of the records; by default they are read now, by
    the workers of `executor` if there are many. A shard takes a few bytes, and a recording that failed 16.
    """
    states = states or record_states(output, plan, executor)
    pending = ~states.recorded | states.damaged
    for index in map(int, np.flatnonzero(plan.changeable() & ~pending)):
        record = records.find_record(output, index)
        pending[index] = record is None or not plan[index].is_recorded_by(record)
    failed, again = ledger.failed_rows(output), array("q")
    for index in map(int, np.flatnonzero(plan.shards_with(failed))):
        found = _retriable(output, plan, index, failed)
        pending[index] |= bool(found)
        again.extend(found)
    if filter_silent is not None:
        pending |= _treated_otherwise(output, plan, filter_silent=filter_silent)
    return Pending(np.flatnonzero(pending), np.unique(np.array(again, np.int64)), states)


def record_states(output: OutputFolder, plan: Plan, executor: StartExecutor | None = None) -> RecordStates:
    """Return the states of the records of `plan` by the digests that the last extraction wrote."""
    return record_ranges.states(output, record_digests.read(output, len(plan)), executor)


def _retriable(output: OutputFolder, plan: Plan, index: int, failed: NDArray[np.int64]) -> list[int]:
    """Return the recordings of a written shard that failed and may succeed now.

    Those of a shard whose rewriting was interrupted, which had `failed` by the ledger, are among them.
    """
    record = records.find_record(output, index)
    if record is None:
        return []
    uri = {segment.recording: segment.source.container for segment in plan[index].segments}
    if not record.finished:
        rows = np.array(list(uri), np.int64)
        return list(map(int, rows[among(rows, failed)]))
    return [o.recording for o in record.outcomes if o.recording in uri and retry.may_succeed(o, uri[o.recording])]


def _treated_otherwise(output: OutputFolder, plan: Plan, *, filter_silent: bool) -> NDArray[np.bool_]:
    """Return which shards have recordings without sound that the last extraction treated otherwise: (shard,) bool."""
    otherwise = ledger.rows_where(output, ["status", "reason"], lambda rows: (
        ledger.silent_rows(rows) & ((rows["status"] == "filtered") != filter_silent).to_numpy(np.bool_)
    ))  # fmt: skip
    return plan.shards_with(otherwise)
