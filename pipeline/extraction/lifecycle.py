"""The backlog: which shards of a plan are still to be written."""

import numpy as np
from numpy.typing import NDArray

from pipeline.extraction.plan import Plan, Shard
from pipeline.outputs import OutputFolder
from pipeline.store import records
from pipeline.store.records import ShardRecord


def unfinished(output: OutputFolder, plan: Plan) -> NDArray[np.int64]:
    """Return the shards that are not finished as `plan` has them, in rising order.

    Those are the shards without a record, and of those that an earlier manifest may have left otherwise the ones whose
    record is not of the recordings that the plan puts there.
    """
    finished = records.finished(output)
    outdated = {i for i in plan.changeable() & finished if not _is_of(records.read_record(output, i), plan[i])}
    return np.setdiff1d(np.arange(len(plan)), np.fromiter(finished - outdated, np.int64))


def _is_of(record: ShardRecord, shard: Shard) -> bool:
    planned = [(segment.recording, segment.masked) for segment in shard.segments]
    return record.finished and planned == [
        (outcome.recording, outcome.reason if outcome.status == "filtered" else "") for outcome in record.outcomes
    ]
