"""A nanny that replaces a worker process also when it dies while it starts, and keeps the reason of the last death."""

import signal
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from dask.utils import format_bytes
from distributed import Nanny
from distributed.core import Status

MAX_STARTS: Final = 3


class RestartingNanny(Nanny):
    """Dask's nanny replaces a worker that dies, but gives up if the first one dies before it has connected.

    Dask's nanny also closes with a worker that the scheduler takes for a dead one; this one replaces that worker.

    Written against distributed 2026.8.0: `instantiate` starts a process and returns `Status.stopped` if it died.
    `Scheduler.remove_worker` closes a worker with the reason "scheduler-remove-worker", and that worker its nanny.
    The memory monitor logs the event "worker-restart-memory" before it ends a process.
    """

    last_death: ClassVar[str] = ""
    """Why the last worker process of any nanny ended, for a message: Dask forgets nannies whose worker is away."""
    _memory_was_full = False

    def close_gracefully(self, reason: str = "nanny-close-gracefully") -> None:
        """Close when the worker has ended, unless the scheduler has merely lost it."""
        if reason != "scheduler-remove-worker":
            super().close_gracefully(reason)

    async def instantiate(self) -> Status:
        """Start a worker process; raises RuntimeError if MAX_STARTS processes died while they started."""
        status: Status = await super().instantiate()
        if self.status != Status.init:
            return status  # Dask's nanny has connected a worker before, and replaces this one
        for _ in range(MAX_STARTS - 1):
            if status != Status.stopped:
                return status
            status = await super().instantiate()
        if status == Status.stopped:
            raise RuntimeError(
                f"{MAX_STARTS} worker processes in a row were killed while they started, probably for lack of memory"
            )
        return status

    def log_event(self, topic: str | list[str], msg: Any) -> None:
        """Log an event at the scheduler; note how much memory a worker used that is ended for it."""
        if topic == "worker-restart-memory" and isinstance(msg, Mapping):
            used, limit = format_bytes(msg["rss"]), format_bytes(self.memory_manager.memory_limit or 0)
            RestartingNanny.last_death = f"a worker process used {used} of its {limit} of memory and was ended"
            self._memory_was_full = True
        super().log_event(topic, msg)  # type: ignore[no-untyped-call]

    def _on_worker_exit_sync(self, exitcode: int) -> None:
        if self._memory_was_full:
            self._memory_was_full = False
        elif exitcode < 0:
            RestartingNanny.last_death = f"a worker process was killed by {signal.Signals(-exitcode).name}"
        else:
            RestartingNanny.last_death = f"a worker process ended with exit code {exitcode}"
        super()._on_worker_exit_sync(exitcode)  # type: ignore[no-untyped-call]
