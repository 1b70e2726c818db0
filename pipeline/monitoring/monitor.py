"""Where a run is reported: events are counted, and shown on a page where the executor has one."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from upath import UPath

from pipeline.monitoring.counters import ExtractionCounters


class Monitor:
    """Counts the events of a run in this process. Executors with a page or lost workers extend it."""

    def __init__(self) -> None:
        self.counters = ExtractionCounters()

    @property
    def dashboard(self) -> str | None:
        """Address of the page that shows the run, None where there is no page."""
        return None

    def report(self, *events: Mapping[str, Any]) -> None:
        """Count events of `pipeline.monitoring.counters`; their time is now."""
        for event in events:
            self.counters.add({**event, "time_s": time.time()})

    def lost_workers_and_retries(self) -> tuple[int, int] | None:
        """Return the numbers of lost workers and of repeated tasks since the last `begin`, None where unknown."""
        return 0, 0

    def series_csv(self) -> bytes:
        """Return the time series of the run as CSV, with the columns of `counters.Point`."""
        return self.counters.series_csv()

    def performance_report(self, page: UPath) -> AbstractContextManager[None]:  # noqa: ARG002 nothing to report here
        """Write the cluster's own report of the work done in the context to `page`, unless the work fails."""
        return nullcontext()
