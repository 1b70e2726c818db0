"""Watching a run on a Dask cluster: the page /pipeline on the scheduler's dashboard, and Dask's own report."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from distributed import Client, performance_report
from upath import UPath

from pipeline.durable_files import make_parent
from pipeline.errors import PipelineError, first_cause, in_one_line
from pipeline.monitoring import dashboard
from pipeline.monitoring.events import Event, to_json
from pipeline.monitoring.monitor import Monitor
from pipeline.runtime.dask_errors import scheduler_needed

log = logging.getLogger(__name__)


class DaskMonitor(Monitor):
    """Passes events on to the page /pipeline, which needs this package on the scheduler.

    Without the page, events are counted in this process alone, and lost workers are unknown.
    """

    def __init__(self, client: Client, scheduler: str) -> None:
        """Add the page to the scheduler at the address `scheduler`, or log why that is impossible."""
        super().__init__()
        self._client, self._scheduler = client, scheduler
        self._has_page = True
        try:
            client.register_plugin(dashboard.Dashboard())
        except ImportError as error:
            self._has_page = False
            log.warning("the scheduler at %s has no page /pipeline: %s; install the project there", scheduler, error)

    @property
    def dashboard(self) -> str | None:
        """Address of the page /pipeline, or of Dask's dashboard if there is no such page; None without a server."""
        link = str(self._client.dashboard_link or "")
        if not link:
            return None
        host = self._scheduler.partition("://")[2].rpartition(":")[0]
        link = link.replace("//[:", f"//{host}:")  # Dask cuts an IPv6 address at its first colon
        return link.removesuffix("/status") + "/pipeline" if self._has_page else link

    def report(self, *events: Event) -> None:
        """Count the events here and on the scheduler."""
        super().report(*events)
        if self._has_page:
            # a lost scheduler is an error of the run itself
            with suppress(PipelineError), scheduler_needed(self._scheduler):
                self._client.log_event(dashboard.TOPIC, to_json(events))

    def lost_workers_and_retries(self) -> tuple[int, int] | None:
        """Return the scheduler's counts, None where it has no page."""
        if not self._has_page:
            return None
        with scheduler_needed(self._scheduler):
            counts: tuple[int, int] = self._client.run_on_scheduler(dashboard.lost_workers_and_retries)
        return counts

    def series_csv(self) -> bytes:
        """Return the scheduler's series, which has workers and memory, or this process's where it has no page."""
        if not self._has_page:
            return super().series_csv()
        with scheduler_needed(self._scheduler):
            series: bytes = self._client.run_on_scheduler(dashboard.series_csv)
        return series

    @contextmanager
    def performance_report(self, page: UPath) -> Iterator[None]:
        """Write Dask's performance report of the context to `page`, as one file that loads nothing from elsewhere.

        A report that cannot be made is a warning: the work of the context is done.
        """
        report = performance_report(str(page), mode="inline", storage_options=dict(page.storage_options))
        with self._client.as_current():
            report.__enter__()
            yield
            try:
                make_parent(page)
                report.__exit__(None, None, None)
            except Exception as error:  # noqa: BLE001 errors of Bokeh, of the file system, of the scheduler
                log.warning("no performance report %s: %s", page, in_one_line(first_cause(error)))
