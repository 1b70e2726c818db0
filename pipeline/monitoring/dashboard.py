"""The page /pipeline on Dask's dashboard server, and metrics for Prometheus on /metrics.

A scheduler plugin that the driver registers (`client.register_plugin(Dashboard())`) or the scheduler preloads (`dask
scheduler --preload pipeline.monitoring.dashboard`). A second registration changes nothing. The driver reports progress
with `client.log_event(TOPIC, events.to_json(…))`; the scheduler adds the workers and their memory.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, Final

from dask.typing import Key
from distributed import Scheduler, SchedulerPlugin
from distributed.http.utils import RequestHandler
from distributed.scheduler import WorkerState
from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from prometheus_client import REGISTRY, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from pipeline.monitoring.events import BeginEvent, ClusterEvent, from_json
from pipeline.monitoring.monitor import Monitor

NAME: Final = "pipeline-dashboard"
TOPIC: Final = "pipeline"
TICK_S: Final = 2.0
"""How often the workers and their memory are counted."""
REFRESH_S: Final = 1.5
"""How often the page asks for the numbers."""
MAX_GONE: Final = 20
"""Workers on the page that have left."""
CHARTED: Final = ("time_s", "audio_h_per_h", "workers", "memory_bytes")
"""The columns of the time series that the page draws."""


class Dashboard(SchedulerPlugin):
    """Counts the events of a run, lost workers and repeated tasks, and serves them.

    Written against distributed 2026.8.0: the events `closing-worker` and `remove-worker`, and `Scheduler.transition`.
    """

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self.monitor = Monitor()
        self.lost_workers = 0
        self.retries = 0
        self._closing: set[str] = set()

    async def start(self, scheduler: Scheduler) -> None:
        """Add the pages to the scheduler's HTTP server, and the metrics to its /metrics."""
        self.scheduler = scheduler
        server = {"dask_server": scheduler}
        scheduler.http_application.add_handlers(
            ".*", [(_prefix(scheduler) + path, handler, server) for path, handler in PAGES.items()]
        )
        self._metrics = Metrics(self)
        REGISTRY.register(self._metrics)
        self._ticks = asyncio.create_task(self._tick())

    async def close(self) -> None:
        """Remove the metrics, as the scheduler closes."""
        self._ticks.cancel()
        with suppress(asyncio.CancelledError):
            await self._ticks
        REGISTRY.unregister(self._metrics)

    def log_event(self, topic: str, msg: Any) -> None:
        """Count the driver's events, and workers that leave without notice or with unfinished tasks."""
        if topic == TOPIC:
            for event in from_json(msg):
                self.monitor.report(event)
                if isinstance(event, BeginEvent):
                    self.lost_workers = self.retries = 0
            return
        action = msg.get("action") if isinstance(msg, dict) else None
        if action == "closing-worker" and topic in self.scheduler.workers:
            self._closing.add(topic)
        elif action == "remove-worker" and topic == "all":
            announced = msg["expected"] or msg["worker"] in self._closing
            self._closing.discard(msg["worker"])
            self.lost_workers += not announced or bool(msg["processing-tasks"])

    def transition(self, key: Key, start: str, finish: str, *_: Any, stimulus_id: str, **__: Any) -> None:  # noqa: ARG002
        """Count tasks that were taken from a worker while their results are still wanted: they run again."""
        if (start, finish) == ("processing", "released") and self.scheduler.tasks[key].who_wants:
            self.retries += 1

    def state(self) -> dict[str, Any]:
        """Return the numbers of the page, as JSON values."""
        workers = self.scheduler.workers
        snapshot = self.monitor.counters.snapshot(time.time())
        counts, series = snapshot.pop("workers"), snapshot.pop("series")
        rows = [{**_worker(state), **counts.get(address, {})} for address, state in workers.items()]
        gone = [{"address": address, **count} for address, count in counts.items() if address not in workers]
        rows += sorted(gone, key=lambda row: row["since_s"])[:MAX_GONE]
        return {
            **snapshot,
            "running": sum(row.get("running", 0) for row in rows),
            "lost_workers": self.lost_workers,
            "retries": self.retries,
            "workers": rows,
            "series": {name: series[name] for name in CHARTED},
        }

    async def _tick(self) -> None:
        while True:
            workers = self.scheduler.workers.values()
            memory_bytes = sum(worker.memory.process for worker in workers)
            self.monitor.report(ClusterEvent(workers=len(workers), memory_bytes=memory_bytes))
            await asyncio.sleep(TICK_S)


def _prefix(scheduler: Scheduler) -> str:
    """Return the prefix of the paths of Dask's own pages (`dask scheduler --dashboard-prefix`)."""
    prefixes = (getattr(application, "prefix", "") for application in scheduler.http_application.applications)
    return next(filter(None, prefixes), "")


def _worker(state: WorkerState) -> dict[str, Any]:
    """Return a worker's tasks and memory. Tasks beyond its number of threads are waiting."""
    running = min(len(state.processing), state.nthreads)
    return {
        "address": state.address,
        "name": str(state.name),
        "running": running,
        "waiting": len(state.processing) - running,
        "memory_bytes": state.memory.process,
        "memory_limit_bytes": state.memory_limit,
    }


@cache
def _template() -> Template:
    environment = Environment(loader=PackageLoader("pipeline.monitoring"), autoescape=True, undefined=StrictUndefined)
    return environment.get_template("pipeline.html.j2")


class Page(RequestHandler):
    """The page. It asks for `State` every REFRESH_S."""

    def get(self) -> None:
        """Send the page with the current numbers."""
        self.write(_template().render(state=_dashboard(self.server).state(), refresh_s=REFRESH_S))


class State(RequestHandler):
    """The numbers of the page."""

    def get(self) -> None:
        """Send the current numbers as JSON."""
        self.set_header("Cache-Control", "no-store")
        self.write(_dashboard(self.server).state())


PAGES: Final[Mapping[str, type[RequestHandler]]] = {"/pipeline": Page, "/pipeline/state.json": State}


class Metrics(Collector):
    """The counters as metrics for Prometheus. Their labels are bounded, as workers and reasons of counters are."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard

    def describe(self) -> Iterator[Metric]:
        """Name no metrics beforehand: two schedulers in one process, as in tests, have the same names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Return the current numbers."""
        state = self._dashboard.state()
        running = min(state["running"], state["shards"]["left"])
        states = {"done": state["shards"]["done"], "running": running, "left": state["shards"]["left"] - running}
        yield _labelled(GaugeMetricFamily, "shards", "Shards of the plan", "state", states)
        yield _single(CounterMetricFamily, "audio_seconds", "Audio of finished shards", state["audio_s"])
        yield _single(GaugeMetricFamily, "audio_hours_per_hour", "Current speed", state["audio_h_per_h_now"] or 0)
        reasons = dict(state["failures"])
        yield _labelled(CounterMetricFamily, "recordings_failed", "Failures of recordings", "reason", reasons)
        yield _single(CounterMetricFamily, "read_bytes", "Bytes of recordings read", state["bytes_read"])
        yield _single(CounterMetricFamily, "written_bytes", "Bytes of shards written", state["bytes_written"])
        yield _single(GaugeMetricFamily, "workers", "Workers now", len(self._dashboard.scheduler.workers))
        busy = {address: count.busy_s for address, count in self._dashboard.monitor.counters.workers.items()}
        yield _labelled(CounterMetricFamily, "worker_busy_seconds", "Time spent on finished shards", "worker", busy)
        yield _single(
            CounterMetricFamily,
            "workers_lost",
            "Workers that left without notice or with unfinished tasks",
            state["lost_workers"],
        )
        yield _single(CounterMetricFamily, "task_retries", "Tasks that ran again", state["retries"])


Family = type[CounterMetricFamily] | type[GaugeMetricFamily]


def _single(family: Family, name: str, text: str, value: float) -> Metric:
    return family(f"pipeline_{name}", text, value=value)


def _labelled(family: Family, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    metric = family(f"pipeline_{name}", text, labels=[label])
    for value, number in values.items():
        metric.add_metric([value], number)
    return metric


def _dashboard(scheduler: Scheduler) -> Dashboard:
    plugin = scheduler.plugins[NAME]
    assert isinstance(plugin, Dashboard)
    return plugin


def dask_setup(scheduler: Scheduler) -> None:
    """Register the plugin on a scheduler that preloads this module."""
    scheduler.add_plugin(Dashboard(), idempotent=True)


def lost_workers_and_retries(dask_scheduler: Scheduler) -> tuple[int, int]:
    """Return the numbers of lost workers and of repeated tasks; for `Client.run_on_scheduler`."""
    dashboard = _dashboard(dask_scheduler)
    return dashboard.lost_workers, dashboard.retries


def series_csv(dask_scheduler: Scheduler) -> bytes:
    """Return the time series of the run as CSV; for `Client.run_on_scheduler`."""
    return _dashboard(dask_scheduler).monitor.series_csv()
