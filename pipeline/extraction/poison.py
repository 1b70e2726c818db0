"""Recordings that end the workers that read them: found one by one, so that each costs itself alone."""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from operator import attrgetter
from typing import Final

from pipeline.errors import counted
from pipeline.extraction.plan import Plan, SharedPlan
from pipeline.extraction.segments import PendingTask
from pipeline.extraction.task import try_pending
from pipeline.features.audio_source import AudioSource
from pipeline.runtime.executor import Executor, Lost, tried_alone

LIMIT_S: Final = 60.0
LIMIT_PER_AUDIO_S: Final = 0.5
"""A task may take LIMIT_S, and this share of the length of the audio that it reads. Sound audio takes some 0.002."""

log = logging.getLogger(__name__)


def limits(plan: Plan) -> Callable[[PendingTask], float]:
    """Return the function that gives the seconds that a task may take."""

    def limit_s(pending: PendingTask) -> float:
        read_s: dict[AudioSource, float] = {}
        for shard in plan.task(pending).shards:
            for segment in shard.segments:
                source = segment.source  # decoding begins at the beginning of the file
                end_s = source.start_s + segment.duration_s
                read_s[source.whole] = max(read_s.get(source.whole, 0.0), end_s)
        return LIMIT_S + LIMIT_PER_AUDIO_S * sum(read_s.values())

    return limit_s


def find(lost: Iterable[PendingTask], plan: Plan, shared: SharedPlan, executor: Executor) -> dict[int, str]:
    """Return the recordings of the tasks `lost` that end a worker when they are read alone: reasons by manifest row.

    Which these are depends on the recordings alone, not on the tasks or workers that they shared.
    """
    found = {}
    limit_s, alone = limits(plan), _one_recording_each(lost, plan)
    for outcome in tried_alone(executor, partial(try_pending, plan=shared), alone, limit_s):
        if isinstance(outcome, Lost):
            segment = plan.task(outcome.item).shards[0].segments[0]
            found[segment.recording] = reason = outcome.failure(limit_s(outcome.item))
            log.warning("extract: %s fails: %s", segment.source.container, reason)
    return found


def _one_recording_each(lost: Iterable[PendingTask], plan: Plan) -> list[PendingTask]:
    """Return a task per recording of the tasks `lost`: their shards with its segments alone."""
    shards: dict[int, list[int]] = {}
    for shard in sorted((shard for pending in lost for shard in plan.task(pending).shards), key=attrgetter("index")):
        for segment in shard.segments:
            if not segment.masked and not segment.failure:
                shards.setdefault(segment.recording, []).append(shard.index)
    return [PendingTask(tuple(indices), only=recording) for recording, indices in shards.items()]


def describe(lost: Lost[PendingTask]) -> str:
    """Return what happened to a task, for the log."""
    how = {
        "crash": f"{counted(lost.workers_lost, 'worker')} died",
        "memory": f"{counted(lost.workers_lost, 'worker')} ran out of memory",
        "timeout": "it did not end in time",
    }[lost.reason]
    return f"{lost.item}: {how}; its recordings are tried one by one"
