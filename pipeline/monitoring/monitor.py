"""Where a run is reported: events are counted, and shown on a page where the executor has one."""

import time
from contextlib import AbstractContextManager, nullcontext

from upath import UPath

from pipeline.monitoring.counters import ExtractionCounters
from pipeline.monitoring.events import BeginEvent, Event


class Monitor:
    """Counts the events of a run in this process. `DaskMonitor` also shows them on a page."""

    def __init__(self) -> None:
        self.counters = ExtractionCounters()
        """Of the stage that began last; another object after each `BeginEvent`."""

    @property
    def dashboard(self) -> str | None:
        """Address of the page that shows the run, None where there is no page."""
        return None

    def report(self, *events: Event) -> None:
        """Count events that happen now."""
        for event in events:
            now_s = time.time()
            if isinstance(event, BeginEvent):
                self.counters = ExtractionCounters.begun(event, now_s, self.counters.cluster)
            else:
                self.counters.add(event, now_s)

    def lost_workers_and_retries(self) -> tuple[int, int] | None:
        """Return the numbers of lost workers and of repeated tasks since the last `BeginEvent`, None where unknown."""
        return 0, 0

    def series_csv(self) -> bytes:
        """Return the time series of the run as CSV, with the columns of `counters.Point`."""
        return self.counters.series_csv()

    def performance_report(self, page: UPath) -> AbstractContextManager[None]:  # noqa: ARG002 nothing to report here
        """Write the cluster's own report of the work done in the context to `page`, unless the work fails."""
        return nullcontext()
