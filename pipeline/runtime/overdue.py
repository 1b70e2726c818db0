"""Ending tasks that take longer than they may."""

import logging
import math
import time
from contextlib import suppress
from typing import Any, Final

from dask.typing import Key
from distributed import Client, Future

from pipeline.runtime.dask_errors import scheduler_needed
from pipeline.runtime.scheduler_queries import kill_process, running_tasks

LOOK_EVERY_S: Final = 2.0
GONE_WITHIN_S: Final = 5.0
POLL_S: Final = 0.02

log = logging.getLogger(__name__)


class Watch:
    """Watches submitted tasks that have a limit in seconds; the time that a task waits for a worker does not count.

    A task that is overdue is cancelled, and the process that runs it is killed: nothing else ends code that hangs in a
    library. The other tasks of that worker run again elsewhere.
    """

    def __init__(self, client: Client, scheduler: str) -> None:
        self._client, self._scheduler = client, scheduler
        self._limits_s: dict[Key, tuple[Future[Any], float]] = {}
        self._overdue: set[Key] = set()
        self._looked_s = -math.inf

    def add(self, future: Future[Any], limit_s: float) -> None:
        """Watch a task from now on."""
        self._limits_s[future.key] = future, limit_s

    def remove(self, key: Key) -> bool:
        """Watch a task no more; return whether it was ended for being overdue."""
        self._limits_s.pop(key, None)
        overdue = key in self._overdue
        self._overdue.discard(key)
        return overdue

    def look(self) -> None:
        """End the tasks that are overdue, if the last look is LOOK_EVERY_S ago."""
        now_s = time.monotonic()
        if not self._limits_s or now_s - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s = now_s
        shortest_s = min(limit_s for _, limit_s in self._limits_s.values())
        with scheduler_needed(self._scheduler):
            running = self._client.run_on_scheduler(running_tasks, longer_than_s=shortest_s)
            for key, (seconds, worker, has_nanny) in sorted(running.items(), key=lambda item: -item[1][0]):
                future, limit_s = self._limits_s.get(key, (None, math.inf))
                if future is None or seconds <= limit_s or key in self._overdue:
                    continue
                log.warning("worker %s is killed: its task has not ended within %.0f s", worker, limit_s)
                self._overdue.add(key)
                self._client.cancel([future], force=True)
                with suppress(KeyError):  # the worker has left meanwhile
                    self._client.run(kill_process, workers=[worker], nanny=has_nanny, on_error="return")
                self._wait_until_gone(worker)
                return  # other tasks of that worker have not begun, or begin anew elsewhere

    def _wait_until_gone(self, worker: str) -> None:
        """Wait until the scheduler knows that `worker` is dead: the next task should not be given to it."""
        deadline_s = time.monotonic() + GONE_WITHIN_S
        while worker in self._client.nthreads() and time.monotonic() < deadline_s:
            time.sleep(POLL_S)
