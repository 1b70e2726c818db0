"""Counters of a running extraction: counts, speeds, failures, workers and a time series, all of bounded size."""

import heapq
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

import pandas as pd

from pipeline.monitoring.events import BeginEvent, ClusterEvent, EndEvent, ShardEvent, SlowRecording
from pipeline.monitoring.stage_counters import StageCounters
from pipeline.schema import reason_kind

MAX_REASONS: Final = 20
MAX_REASON_CHARACTERS: Final = 200
MAX_WORKERS: Final = 1024
MAX_SLOWEST: Final = 10
MAX_POINTS: Final = 720
OTHER: Final = "other"
FIRST_INTERVAL_S: Final = 1.0


@dataclass
class WorkerCount:
    """The finished shards of a worker; `seen_s` is the time of the last one."""

    shards: int = 0
    audio_s: float = 0.0
    busy_s: float = 0.0
    seen_s: float = 0.0

    def add(self, other: "WorkerCount") -> None:
        """Add the counts of `other`."""
        self.shards += other.shards
        self.audio_s += other.audio_s
        self.busy_s += other.busy_s
        self.seen_s = max(self.seen_s, other.seen_s)


class Point(NamedTuple):
    """A row of the time series. `time_s` counts from the beginning; unknown workers and memory are None."""

    time_s: float
    shards_done: int
    audio_h: float
    audio_h_per_h: float
    recordings_failed: int
    workers: int | None
    memory_bytes: int | None


@dataclass
class ExtractionCounters(StageCounters):
    """Counts the events of one extraction. Nothing has begun where `stage` is None.

    `failed` counts a recording once in each of its shards.
    """

    stage: str | None = None
    ended: bool = False
    bytes_read: int = 0
    bytes_written: int = 0
    shard_s: float | None = None
    """Time of the last shard."""
    cluster: ClusterEvent | None = None
    failures: Counter[str] = field(default_factory=Counter)
    workers: dict[str, WorkerCount] = field(default_factory=dict)
    """By address, in the order of their last shards."""
    other_workers: WorkerCount = field(default_factory=WorkerCount)
    """The workers beyond MAX_WORKERS, together."""
    slowest: list[SlowRecording] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    interval_s: float = FIRST_INTERVAL_S
    """The least time between two points."""

    @classmethod
    def begun(cls, event: BeginEvent, time_s: float, cluster: ClusterEvent | None = None) -> Self:
        """Return the counters of a stage that begins at `time_s` on a cluster in the state `cluster`."""
        counters = cls(
            total=event.shards, done_before=event.done, started_s=time_s, updated_s=time_s, stage=event.stage,
            cluster=cluster,
        )  # fmt: skip
        counters._add_point()
        return counters

    def add(self, event: ShardEvent | ClusterEvent | EndEvent, time_s: float) -> None:
        """Count an event at `time_s`. Outside a running stage, only the state of the cluster is noted."""
        if isinstance(event, ClusterEvent):
            self.cluster = event
        if self.status != "running":
            return
        self.updated_s = max(self.updated_s, time_s)  # clocks of several hosts differ
        if isinstance(event, ShardEvent):
            self._count_shard(event)
        self.ended = isinstance(event, EndEvent)
        self._add_point()

    @property
    def status(self) -> str:
        """One of idle (nothing has begun), running, finished, and stopped (ended with shards left)."""
        if self.stage is None:
            return "idle"
        if not self.ended:
            return "running"
        return "stopped" if self.left else "finished"

    def snapshot(self, time_s: float) -> dict[str, Any]:
        """Return all counters at `time_s` as JSON values. After the end, time stands still."""
        running = self.status == "running"
        now_s = max(time_s, self.updated_s) if running else self.updated_s
        return {
            "stage": self.stage,
            "status": self.status,
            "elapsed_s": now_s - self.started_s,
            "since_shard_s": None if self.shard_s is None else now_s - self.shard_s,
            "shards": {"total": self.total, "done": self.done, "left": self.left},
            "shards_before": self.done_before,
            "audio_s": self.audio_s,
            "audio_h_per_h_now": self.audio_h_per_h_now(now_s) if running else None,
            "audio_h_per_h": self.audio_h_per_h(now_s),
            "left_s": self.left_s(now_s) if running else None,
            "failed": self.failed,
            "failures": sorted(self.failures.items(), key=lambda item: (item[0] == OTHER, -item[1])),
            "workers": {
                address: {
                    "shards": count.shards,
                    "audio_s": count.audio_s,
                    "busy_s": count.busy_s,
                    "since_s": now_s - count.seen_s,
                }
                for address, count in self.workers.items()
            },
            "slowest": [list(recording) for recording in self.slowest],
            "work_s_per_audio_s": self.busy_s / self.audio_s if self.audio_s else None,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "series": {name: [point[i] for point in self.points] for i, name in enumerate(Point._fields)},
        }

    def series(self) -> pd.DataFrame:
        """Return the time series: one row per point, with the columns of `Point`."""
        types = {"workers": "Int64", "memory_bytes": "Int64"}
        return pd.DataFrame(self.points, columns=list(Point._fields)).astype(types)

    def series_csv(self) -> bytes:
        """Return the time series as CSV with a header; unknown values are empty."""
        return self.series().to_csv(index=False, float_format="%.9g", lineterminator="\n").encode()

    def _count_shard(self, event: ShardEvent) -> None:
        self.advance(self.updated_s, audio_s=event.audio_s, busy_s=event.busy_s, failed=sum(event.failures.values()))
        self.bytes_read += event.bytes_read
        self.bytes_written += event.bytes_written
        self.shard_s = self.updated_s
        for reason, count in event.failures.items():
            kind = reason_kind(reason)[:MAX_REASON_CHARACTERS]
            full = len(self.failures) - (OTHER in self.failures) >= MAX_REASONS
            self.failures[OTHER if full and kind not in self.failures else kind] += count
        self._count_worker(event.worker, WorkerCount(1, event.audio_s, event.busy_s, self.updated_s))
        self._rank(event.slowest)

    def _count_worker(self, address: str, count: WorkerCount) -> None:
        known = self.workers.pop(address, WorkerCount())
        known.add(count)
        self.workers[address] = known
        if len(self.workers) > MAX_WORKERS:
            self.other_workers.add(self.workers.pop(next(iter(self.workers))))

    def _rank(self, recordings: tuple[SlowRecording, ...]) -> None:
        """Keep the recordings with the most work beyond that of their length at the run's mean speed.

        Ranked by work alone the longest recordings would lead, by work per second of audio the shortest.
        """
        mean = self.busy_s / self.audio_s if self.audio_s else 0.0
        known: dict[str, SlowRecording] = {}
        for recording in (*self.slowest, *recordings):  # of a recording in two shards, the slower part counts
            name = recording.recording_id
            known[name] = max(recording, known.get(name, recording), key=lambda part: part.work_s)
        self.slowest = heapq.nlargest(MAX_SLOWEST, known.values(), key=lambda row: row.work_s - mean * row.audio_s)

    def _add_point(self) -> None:
        """Add a point to the series if one is due. A full series loses every second point."""
        time_s = self.updated_s - self.started_s
        if not self.ended and self.points and time_s - self.points[-1].time_s < self.interval_s:
            return
        if len(self.points) >= MAX_POINTS:
            self.points = self.points[::2]
            self.interval_s *= 2
        workers, memory_bytes = (self.cluster.workers, self.cluster.memory_bytes) if self.cluster else (None, None)
        speed = self.audio_h_per_h_now(self.updated_s)
        self.points.append(Point(time_s, self.done, self.audio_s / 3600, speed, self.failed, workers, memory_bytes))
