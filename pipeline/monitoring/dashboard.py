"""The pipeline's page on Dask's dashboard server: /pipeline for a person, /metrics for Prometheus.

A scheduler plugin, registered by the driver (`client.register_plugin(Dashboard())`) or preloaded
(`dask scheduler --preload pipeline.monitoring.dashboard`). Registering it twice changes nothing. The driver reports
progress with `client.log_event(TOPIC, [event, …])`, using the events of `pipeline.monitoring.counters`. The scheduler
itself supplies the number of workers and their memory.
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

from pipeline.monitoring.counters import ExtractionCounters

NAME: Final = "pipeline-dashboard"
TOPIC: Final = "pipeline"
TICK_S: Final = 2.0  # of the series of workers and memory
REFRESH_S: Final = 1.5  # of the page
MAX_GONE: Final = 20  # workers that have left, shown in the page

# columns of the series that the page draws
DRAWN: Final = ("time_s", "audio_h_per_h", "workers", "memory_bytes")


class Dashboard(SchedulerPlugin):
    """Counts the events of a run and what the scheduler alone knows, and serves both."""

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self.board = ExtractionCounters()
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
        """Take the metrics back; the scheduler closes."""
        self._ticks.cancel()
        with suppress(asyncio.CancelledError):
            await self._ticks
        REGISTRY.unregister(self._metrics)

    def log_event(self, topic: str, msg: Any) -> None:
        """Count what the driver says, and how workers leave."""
        if topic == TOPIC:
            for event in msg:
                # one clock for all: the scheduler's
                self.board.add({**event, "time_s": time.time()})
                if event["kind"] == "begin":
                    self.lost_workers = self.retries = 0
            return
        action = msg.get("action") if isinstance(msg, dict) else None
        if action == "closing-worker" and topic in self.scheduler.workers:
            self._closing.add(topic)
        elif action == "remove-worker" and topic == "all":
            announced = msg["expected"] or msg["worker"] in self._closing
            self._closing.discard(msg["worker"])
            # a worker that leaves in order, but before its tasks are done, is missed all the same
            self.lost_workers += not announced or bool(msg["processing-tasks"])

    def transition(self, key: Key, start: str, finish: str, *_: Any, stimulus_id: str, **__: Any) -> None:  # noqa: ARG002
        """Count tasks that a worker had and that somebody waits for still: they will run again."""
        if (start, finish) == ("processing", "released") and self.scheduler.tasks[key].who_wants:
            self.retries += 1

    def state(self) -> dict[str, Any]:
        """Return what the page shows, as JSON values."""
        workers = self.scheduler.workers
        seen = self.board.snapshot(time.time())
        counts, series = seen.pop("workers"), seen.pop("series")
        rows = [{**_worker(state), **counts.get(address, {})} for address, state in workers.items()]
        gone = [{"address": address, **count} for address, count in counts.items() if address not in workers]
        rows += sorted(gone, key=lambda row: row["since_s"])[:MAX_GONE]
        running = sum(row.get("running", 0) for row in rows)
        return {
            **seen,
            "running": running,
            "lost_workers": self.lost_workers,
            "retries": self.retries,
            "workers": rows,
            "series": {name: series[name] for name in DRAWN},
        }

    async def _tick(self) -> None:
        while True:
            workers = self.scheduler.workers.values()
            self.board.add({
                "kind": "cluster", "workers": len(workers), "time_s": time.time(),
                "memory_bytes": sum(worker.memory.process for worker in workers),
            })  # fmt: skip
            await asyncio.sleep(TICK_S)


def _prefix(scheduler: Scheduler) -> str:
    """Return what Dask's own pages have before their names (`dask scheduler --dashboard-prefix`)."""
    prefixes = (getattr(application, "prefix", "") for application in scheduler.http_application.applications)
    return next(filter(None, prefixes), "")


def _worker(state: WorkerState) -> dict[str, Any]:
    """Return what the scheduler knows of a worker. Tasks that it was given beyond its threads wait there."""
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
    """The page, which asks for the state again and again."""

    def get(self) -> None:
        """Send the page as it is now."""
        self.write(_template().render(state=_dashboard(self.server).state(), refresh_s=REFRESH_S))


class State(RequestHandler):
    """The page's numbers."""

    def get(self) -> None:
        """Send the numbers of now as JSON."""
        self.set_header("Cache-Control", "no-store")
        self.write(_dashboard(self.server).state())


PAGES: Final[Mapping[str, type[RequestHandler]]] = {"/pipeline": Page, "/pipeline/state.json": State}


class Metrics(Collector):
    """The board's numbers for Prometheus. Labels are bounded: kinds of reasons and workers are, on the board."""

    def __init__(self, dashboard: Dashboard) -> None:
        self._dashboard = dashboard

    def describe(self) -> Iterator[Metric]:
        """Name nothing beforehand: two schedulers of a process (as in tests) have the same names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Return the numbers of now."""
        seen = self._dashboard.state()
        running = min(seen["running"], seen["shards"]["left"])
        states = {"done": seen["shards"]["done"], "running": running, "left": seen["shards"]["left"] - running}
        yield _labelled(GaugeMetricFamily, "shards", "Shards of the plan", "state", states)
        yield _single(CounterMetricFamily, "audio_seconds", "Audio of finished shards", seen["audio_s"])
        yield _single(
            GaugeMetricFamily, "audio_hours_per_hour", "Speed over the last shards", seen["audio_h_per_h_now"] or 0
        )
        reasons = dict(seen["failures"])
        yield _labelled(CounterMetricFamily, "recordings_failed", "Failures of recordings", "reason", reasons)
        yield _single(CounterMetricFamily, "read_bytes", "Bytes of recordings read", seen["bytes_read"])
        yield _single(CounterMetricFamily, "written_bytes", "Bytes of shards written", seen["bytes_written"])
        yield _single(GaugeMetricFamily, "workers", "Workers now", len(self._dashboard.scheduler.workers))
        busy = {address: count.busy_s for address, count in self._dashboard.board.workers.items()}
        yield _labelled(CounterMetricFamily, "worker_busy_seconds", "Time spent on finished shards", "worker", busy)
        yield _single(CounterMetricFamily, "workers_lost", "Workers that left unasked", seen["lost_workers"])
        yield _single(CounterMetricFamily, "task_retries", "Tasks given out again", seen["retries"])


Family = type[CounterMetricFamily] | type[GaugeMetricFamily]


def _single(family: Family, name: str, text: str, value: float) -> Metric:
    return family(f"pipeline_{name}", text, value=value)


def _labelled(family: Family, name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    metric = family(f"pipeline_{name}", text, labels=[label])
    for value, number in values.items():
        metric.add_metric([value], number)
    return metric


def _dashboard(scheduler: Scheduler) -> Dashboard:
    found = scheduler.plugins[NAME]
    assert isinstance(found, Dashboard)
    return found


def dask_setup(scheduler: Scheduler) -> None:
    """Register the plugin on a scheduler that preloads this module."""
    scheduler.add_plugin(Dashboard(), idempotent=True)


def lost_workers_and_retries(dask_scheduler: Scheduler) -> tuple[int, int]:
    """Return how many workers were lost and how many tasks given out again, for `client.run_on_scheduler`."""
    found = _dashboard(dask_scheduler)
    return found.lost_workers, found.retries


def series_csv(dask_scheduler: Scheduler) -> bytes:
    """Return the series of the run as CSV, for `client.run_on_scheduler`; see `board.Point` for the columns."""
    return _dashboard(dask_scheduler).board.series_csv()
