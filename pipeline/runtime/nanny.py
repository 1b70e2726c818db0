"""A nanny that replaces a worker process also when it dies while it starts for the first time."""

from typing import Final

from distributed import Nanny
from distributed.core import Status

MAX_STARTS: Final = 3


class RestartingNanny(Nanny):
    """Dask's nanny replaces a worker that dies, but gives up if the first one dies before it has connected.

    Dask's nanny also closes with a worker that the scheduler takes for a dead one; this one replaces that worker.

    Written against distributed 2026.8.0: `instantiate` starts a process and returns `Status.stopped` if it died.
    `Scheduler.remove_worker` closes a worker with the reason "scheduler-remove-worker", and that worker its nanny.
    """

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
