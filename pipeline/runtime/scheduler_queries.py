"""What is asked of the scheduler, and of the nannies, about tasks that do not end and workers that died.

Written against distributed 2026.8.0. The scheduler may lack this package. The module is therefore pickled by value and
imports nothing of the project.
"""

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping

import cloudpickle
from dask.typing import Key
from distributed import Nanny, Scheduler, Worker


def running_tasks(dask_scheduler: Scheduler, *, longer_than_s: float) -> dict[Key, tuple[float, str, bool]]:
    """Return the tasks that may have run for longer than `longer_than_s`; for `Client.run_on_scheduler`.

    The values are the most seconds that a task has run, the worker that runs it, and whether a nanny watches that one.
    A worker reports the duration of its tasks with every heartbeat. Time since then is added, because code that holds
    Python's lock keeps a worker from reporting; a task that waits at such a worker counts as running.
    """
    now_s = time.time()
    found = {}
    for worker in dask_scheduler.workers.values():
        silent_s = max(0.0, now_s - worker.last_seen)
        for task in worker.processing:
            seconds = worker.executing.get(task, 0.0) + silent_s
            if seconds > longer_than_s:
                found[task.key] = seconds, worker.address, worker.nanny is not None
    return found


def kill_process(dask_worker: Nanny | Worker) -> None:
    """Kill a worker's process; for `Client.run` on its nanny, which replaces the process, or on the worker itself."""
    pid = dask_worker.pid if isinstance(dask_worker, Nanny) else os.getpid()
    if pid:
        os.kill(pid, signal.SIGKILL)


async def ran_out_of_memory(dask_scheduler: Scheduler, *, key: Key) -> bool:
    """Return whether a nanny ended a worker that had the task `key`, because the worker's memory was full.

    The nanny's message may arrive after the worker's death. It is awaited for half a second.
    """
    died = {
        event["worker"]
        for _, event in dask_scheduler.get_events("all")
        if isinstance(event, Mapping) and event.get("action") == "remove-worker" and key in event["processing-tasks"]
    }
    for _ in range(10):
        if any(event["worker"] in died for _, event in dask_scheduler.get_events("worker-restart-memory")):
            return True
        await asyncio.sleep(0.05)
    return False


cloudpickle.register_pickle_by_value(sys.modules[__name__])
