"""Recordings that end the workers that read them: found one by one, so that each costs itself alone."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from operator import attrgetter
from typing import Final

import pandas as pd

from pipeline.config import PipelineConfig
from pipeline.errors import counted
from pipeline.extraction.plan import Shard, Task
from pipeline.extraction.task import try_task
from pipeline.features.audio_source import AudioSource
from pipeline.runtime.executor import Executor, Lost, tried_alone

LIMIT_S: Final = 60.0
LIMIT_PER_AUDIO_S: Final = 0.5
"""A task may take LIMIT_S, and this share of the length of the audio that it reads. Sound audio takes some 0.002."""

log = logging.getLogger(__name__)


def limits(manifest: pd.DataFrame) -> Callable[[Task], float]:
    """Return the function that gives the seconds that a task may take."""
    duration_s = manifest["duration_s"].to_numpy()

    def limit_s(task: Task) -> float:
        read_s: dict[AudioSource, float] = {}
        for shard in task.shards:
            for segment in shard.segments:
                source = segment.source  # decoding begins at the beginning of the file
                end_s = source.start_s + float(duration_s[segment.recording])
                read_s[source.whole] = max(read_s.get(source.whole, 0.0), end_s)
        return LIMIT_S + LIMIT_PER_AUDIO_S * sum(read_s.values())

    return limit_s


def find(
    lost: Iterable[Task], config: PipelineConfig, executor: Executor, limit_s: Callable[[Task], float]
) -> dict[int, str]:
    """Return the recordings of the tasks `lost` that end a worker when they are read alone: reasons by manifest row.

    Which these are depends on the recordings alone, not on the tasks or workers that they shared.
    """
    found = {}
    for outcome in tried_alone(executor, partial(try_task, config=config), _one_recording_each(lost), limit_s):
        if isinstance(outcome, Lost):
            segment = outcome.item.shards[0].segments[0]
            found[segment.recording] = reason = outcome.failure(limit_s(outcome.item))
            log.warning("extract: %s fails: %s", segment.source.container, reason)
    return found


def _one_recording_each(tasks: Iterable[Task]) -> list[Task]:
    """Return a task per recording of `tasks`: their shards with its segments alone."""
    shards: dict[int, list[Shard]] = {}
    for shard in sorted((shard for task in tasks for shard in task.shards), key=attrgetter("index")):
        for segment in shard.segments:
            if not segment.masked and not segment.failure:
                shards.setdefault(segment.recording, []).append(replace(shard, segments=(segment,)))
    return [Task(tuple(of_one)) for of_one in shards.values()]


def without(task: Task, guilty: Mapping[int, str]) -> Task:
    """Return `task` with the recordings `guilty`, reasons by manifest row, as failed ones that are not read."""
    return replace(task, shards=tuple(
        replace(shard, segments=tuple(
            replace(segment, failure=guilty.get(segment.recording, "")) for segment in shard.segments
        ))
        for shard in task.shards
    ))  # fmt: skip


def describe(lost: Lost[Task]) -> str:
    """Return what happened to a task, for the log."""
    how = {
        "crash": f"{counted(lost.workers_lost, 'worker')} died",
        "memory": f"{counted(lost.workers_lost, 'worker')} ran out of memory",
        "timeout": "it did not end in time",
    }[lost.reason]
    return f"{lost.item}: {how}; its recordings are tried one by one"
