"""How many shards a task has: so many that it costs little beside its work, so few that all workers end together.

Towards the end tasks become smaller: guided self-scheduling (Polychronopoulos and Kuck, IEEE Transactions on Computers
C-36, 1987).
"""

import math
from collections.abc import Callable, Iterable
from typing import Final

from pipeline.extraction.task import ShardSummary

TASK_S: Final = 4.0
"""What a task takes while there is much to do."""
MAX_SHARDS: Final = 16
"""Scheduler and driver hold all segments of the tasks that are submitted."""
UNMEASURED_SHARDS: Final = 4
"""The size of tasks before the first one is finished."""
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
        fair = left // (TASKS_PER_THREAD * max(1, self._threads()))
        wanted = math.ceil(TASK_S * self._shards / self._busy_s) if self._shards else UNMEASURED_SHARDS
        return max(1, min(fair, wanted, MAX_SHARDS))
