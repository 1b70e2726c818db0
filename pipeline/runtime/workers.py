"""The workers of a cluster, and waiting for them."""

import logging
import math
import time
from collections.abc import Callable
from typing import Final

from distributed import Client

from pipeline.errors import PipelineError, counted
from pipeline.monitoring.progress import duration
from pipeline.runtime.dask_errors import scheduler_needed
from pipeline.runtime.outlook import Outlook
from pipeline.runtime.submission_notes import clear_submission_notes

WARN_EVERY_S: Final = 10.0
LOOK_EVERY_S: Final = 2.0
POLL_S: Final = 0.1

log = logging.getLogger(__name__)


class Workers:
    """The workers of a cluster, looked up every LOOK_EVERY_S.

    While there are none, a warning is logged every WARN_EVERY_S, until the limit of the cluster's outlook is reached.
    """

    def __init__(self, client: Client, scheduler: str, outlook: Callable[[], Outlook]) -> None:
        self._client, self._scheduler, self._outlook = client, scheduler, outlook
        self._threads: dict[str, int] = {}
        self._looked_s = -math.inf
        self._seen_s = self._warned_s = time.monotonic()
        self._refusal = ""

    def look(self) -> None:
        """Look the workers up, if the last look is old enough; keep the scheduler's memory constant.

        Raises PipelineError if there has been none for too long.
        """
        if time.monotonic() - self._looked_s < LOOK_EVERY_S:
            return
        self._look()
        with scheduler_needed(self._scheduler):
            self._client.run_on_scheduler(clear_submission_notes)

    def wait_for_one(self) -> None:
        """Wait until there is a worker; raises PipelineError if none can come, or if it takes too long."""
        self._look()
        while not self._threads:
            time.sleep(POLL_S)
            self._look()

    @property
    def count(self) -> int:
        """Number of workers at the last look."""
        return len(self._threads)

    @property
    def threads(self) -> int:
        """Number of threads of all workers at the last look."""
        return sum(self._threads.values())

    def _look(self) -> None:
        with scheduler_needed(self._scheduler):
            self._threads = self._client.nthreads()
        outlook, now_s = self._outlook(), time.monotonic()
        self._looked_s = now_s
        if self._threads:
            self._seen_s = self._warned_s = now_s
            if outlook.refusal not in ("", self._refusal):
                log.warning("%s; the run continues with %s", outlook.refusal, counted(self.count, "worker"))
            self._refusal = outlook.refusal
        elif outlook.limit_s is not None and now_s - self._seen_s >= outlook.limit_s:
            raise self._none(outlook)
        elif now_s - self._warned_s > WARN_EVERY_S:
            self._warned_s = now_s
            self._warn(outlook)

    def _warn(self, outlook: Outlook) -> None:
        known = f" ({outlook})" if str(outlook) else ""
        limit = (
            "Ctrl-C ends it" if outlook.limit_s is None else f"it ends after {duration(outlook.limit_s)} without one"
        )
        log.warning(
            "the scheduler at %s has no worker%s; the run continues when one connects, %s",
            self._scheduler,
            known,
            limit,
        )

    def _none(self, outlook: Outlook) -> PipelineError:
        known = f": {outlook}" if str(outlook) else ""
        if not outlook.limit_s:
            return PipelineError(
                f"--cluster: the scheduler at {self._scheduler} can get no worker{known}; correct the profile and run "
                "the same command again: finished shards are kept"
            )
        return PipelineError(
            f"--cluster: the scheduler at {self._scheduler} has had no worker for {duration(outlook.limit_s)}{known}; "
            "see why none starts, or make worker_timeout_s in the profile longer, and run the same command again: "
            "finished shards are kept"
        )
