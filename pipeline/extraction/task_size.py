"""How many shards a task has: so many that it costs little beside its work, so few that all workers end together.

Towards the end tasks become smaller: guided self-scheduling (Polychronopoulos and Kuck, IEEE Transactions on Computers
C-36, 1987).
"""

import math
from collections.abc import Callable, Iterable
from typing import Final

from pipeline.extraction.task import ShardSummary

MIN_TASK_S: Final = 4.0
"""What a task takes while there is much to do, unless so many threads need longer tasks."""
TASKS_PER_S: Final = 40.0
MAX_TASKS_PER_S: Final = 200.0
"""What all tasks together ask of the driver and the scheduler, and what they may ask towards the end. These can give
out some 400 tasks per second."""
ASSUMED_SHARD_S: Final = 1.0
"""What a shard takes before any is measured."""
TASKS_PER_THREAD: Final = 4
"""Tasks become smaller if there are fewer tasks left than this for each thread."""


class TaskSize:
    """The size of the next task, from the time that shards took and from the threads that all workers have now."""

    def __init__(self, threads: Callable[[], int]) -> None:
        self._threads = threads
        self._shards, self._busy_s = 0, 0.0

    def add(self, summaries: Iterable[ShardSummary]) -> None:
        """Take the time of shards into account, but for those that were there already."""
        for summary in summaries:
            if summary.busy_s:
                self._shards += 1
                self._busy_s += summary.busy_s

    def shards(self, left: int) -> int:
        """Return how many shards the next task has, given how many are in no task yet."""
        threads = max(1, self._threads())
        shard_s = self._busy_s / self._shards if self._shards else ASSUMED_SHARD_S
        fair = left // (TASKS_PER_THREAD * threads)
        least, most = threads / MAX_TASKS_PER_S, max(MIN_TASK_S, threads / TASKS_PER_S)
        return max(1, math.floor(least / shard_s), min(fair, math.ceil(most / shard_s)))
