"""What is known of a running extraction, fed by events: counts, speeds, failures and a series, all of bounded size.

An event is a dictionary of JSON values with a `kind`:

- `{"kind": "begin", "stage": "extract", "shards": 100, "done": 20, "time_s": …}`: the plan's shards and how many of
  them were finished before; all that was known before is forgotten;
- `ShardEvent.to_dict()`: a shard is finished;
- `{"kind": "cluster", "workers": 2, "memory_bytes": …, "time_s": …}`: the workers now and their memory in use;
- `{"kind": "end", "time_s": …}`: the stage has ended, however far it came.

There is no clock in here: `time_s` comes from outside, seconds of whichever clock all events and questions share.
"""

import heapq
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple, Self

import pandas as pd

from pipeline.schema import reason_kind

MAX_REASONS: Final = 20
MAX_REASON_CHARACTERS: Final = 200
MAX_WORKERS: Final = 1024
MAX_SLOWEST: Final = 10
MAX_POINTS: Final = 720
OTHER: Final = "other"
KINDS: Final = ("begin", "shard", "cluster", "end")

FIRST_INTERVAL_S: Final = 1.0
MARK_EVERY_S: Final = 1.0
WINDOW_S: Final = (30.0, 600.0)
"""The least and the most time that the speed of now is measured over."""
WINDOW_SHARDS: Final = 10
"""Shards that a worker finishes in that time: workers that finish together would make a shorter one jump."""


@dataclass(frozen=True)
class ShardEvent:
    """A finished shard. `failures` counts reasons; `slowest` holds (recording_id, seconds of work, of audio)."""

    index: int
    audio_s: float
    busy_s: float
    worker: str
    time_s: float
    failures: Mapping[str, int] = field(default_factory=dict)
    slowest: tuple[tuple[str, float, float], ...] = ()
    bytes_read: int = 0
    bytes_written: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the event as JSON values."""
        plain = {"failures": dict(self.failures), "slowest": [list(row) for row in self.slowest]}
        return {"kind": "shard", **asdict(self), **plain}  # asdict makes another Counter out of a Counter

    @classmethod
    def from_dict(cls, event: Mapping[str, Any]) -> Self:
        """Return what `to_dict` made into JSON values."""
        fields = {key: value for key, value in event.items() if key != "kind"}
        return cls(**{**fields, "slowest": tuple((str(name), *rest) for name, *rest in fields.get("slowest", ()))})


@dataclass
class WorkerCount:
    """What a worker has done; `seen_s` is the time of its last shard."""

    shards: int = 0
    audio_s: float = 0.0
    busy_s: float = 0.0
    seen_s: float = 0.0

    def add(self, other: "WorkerCount") -> None:
        """Count what `other` counted."""
        self.shards += other.shards
        self.audio_s += other.audio_s
        self.busy_s += other.busy_s
        self.seen_s = max(self.seen_s, other.seen_s)


class Point(NamedTuple):
    """A row of the series; `time_s` counts from the beginning. Workers and memory are None where nobody told."""

    time_s: float
    shards_done: int
    audio_h: float
    audio_h_per_h: float
    recordings_failed: int
    workers: int | None
    memory_bytes: int | None


class Mark(NamedTuple):
    """How far the run was at a time."""

    time_s: float
    shards: int
    audio_s: float


@dataclass
class ExtractionCounters:
    """Counts events; see the module's description. Sizes do not depend on the number of shards."""

    stage: str | None = None
    shards_total: int = 0
    shards_before: int = 0
    shards_new: int = 0
    audio_s: float = 0.0
    busy_s: float = 0.0
    bytes_read: int = 0
    bytes_written: int = 0
    started_s: float = 0.0
    updated_s: float = 0.0
    shard_s: float | None = None  # time of the last shard
    ended: bool = False
    workers_now: int | None = None
    memory_bytes: int | None = None
    failures: Counter[str] = field(default_factory=Counter)
    workers: dict[str, WorkerCount] = field(default_factory=dict)
    gone: WorkerCount = field(default_factory=WorkerCount)  # workers beyond MAX_WORKERS, together
    slowest: list[tuple[str, float, float]] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)
    interval_s: float = FIRST_INTERVAL_S
    _marks: deque[Mark] = field(default_factory=deque)

    def add(self, event: Mapping[str, Any]) -> None:
        """Count an event; raises ValueError for one of an unknown kind.

        Between an end and the next beginning nothing changes but what is known of the cluster.
        """
        kind, time_s = event["kind"], float(event["time_s"])
        if kind not in KINDS:
            raise ValueError(f"a board counts no events of kind {kind!r}; allowed: {', '.join(KINDS)}")
        if kind == "cluster":
            self.workers_now, self.memory_bytes = event["workers"], event["memory_bytes"]
        if kind == "begin":
            self._begin(str(event["stage"]), int(event["shards"]), int(event["done"]), time_s)
        elif self.status != "running":
            return
        # clocks of several hosts differ: time does not go backwards here
        self.updated_s = max(self.updated_s, time_s)
        if kind == "shard":
            self._shard(ShardEvent.from_dict(event))
        self.ended = kind == "end"
        self._record()

    @property
    def shards_done(self) -> int:
        """Finished shards, those finished before among them."""
        return self.shards_before + self.shards_new

    @property
    def shards_left(self) -> int:
        """Shards that are not finished."""
        return max(0, self.shards_total - self.shards_done)

    @property
    def failed(self) -> int:
        """Recordings that failed, counted once in each of their shards."""
        return self.failures.total()

    @property
    def status(self) -> str:
        """One of idle (nothing has begun), running, finished and stopped (ended with shards left)."""
        if self.stage is None:
            return "idle"
        if not self.ended:
            return "running"
        return "stopped" if self.shards_left else "finished"

    def window(self, time_s: float) -> Mark:
        """Return how much was done in the window before `time_s`: its length, shards and seconds of audio."""
        least_s, most_s = WINDOW_S
        mean_s = self.busy_s / self.shards_new if self.shards_new else 0.0
        since_s = time_s - min(max(WINDOW_SHARDS * mean_s, least_s), most_s)
        begin = Mark(self.started_s, 0, 0.0)
        start = next((mark for mark in reversed(self._marks) if mark.time_s <= since_s), begin)
        return Mark(time_s - start.time_s, self.shards_new - start.shards, self.audio_s - start.audio_s)

    def audio_h_per_h_now(self, time_s: float) -> float:
        """Return hours of audio an hour over the window before `time_s`."""
        window = self.window(time_s)
        return window.audio_s / window.time_s if window.time_s > 0 else 0.0

    def audio_h_per_h(self, time_s: float) -> float:
        """Return hours of audio an hour from the beginning to `time_s`."""
        elapsed_s = time_s - self.started_s
        return self.audio_s / elapsed_s if elapsed_s > 0 else 0.0

    def left_s(self, time_s: float) -> float | None:
        """Return the seconds left at the speed of now, or None while no shard is finished at all."""
        window = self.window(time_s)
        return self.shards_left * window.time_s / window.shards if window.shards else None

    def snapshot(self, time_s: float) -> dict[str, Any]:
        """Return all that is known at `time_s`, as JSON values; after the end, at the end."""
        running = self.status == "running"
        now_s = max(time_s, self.updated_s) if running else self.updated_s
        return {
            "stage": self.stage,
            "status": self.status,
            "elapsed_s": now_s - self.started_s,
            "since_shard_s": None if self.shard_s is None else now_s - self.shard_s,
            "shards": {"total": self.shards_total, "done": self.shards_done, "left": self.shards_left},
            "shards_before": self.shards_before,
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
            "slowest": [list(row) for row in self.slowest],
            "work_s_per_audio_s": self.busy_s / self.audio_s if self.audio_s else None,
            "bytes_read": self.bytes_read,
            "bytes_written": self.bytes_written,
            "series": {name: [point[i] for point in self.points] for i, name in enumerate(Point._fields)},
        }

    def series(self) -> pd.DataFrame:
        """Return the series: a row a point, with the columns of `Point`."""
        types = {"workers": "Int64", "memory_bytes": "Int64"}
        return pd.DataFrame(self.points, columns=list(Point._fields)).astype(types)

    def series_csv(self) -> bytes:
        """Return the series as CSV with a heading; what nobody told is empty."""
        return self.series().to_csv(index=False, float_format="%.9g", lineterminator="\n").encode()

    def _begin(self, stage: str, shards: int, done: int, time_s: float) -> None:
        fresh = ExtractionCounters(
            stage=stage, shards_total=shards, shards_before=done, started_s=time_s, updated_s=time_s
        )
        fresh.workers_now, fresh.memory_bytes = self.workers_now, self.memory_bytes
        self.__dict__.update(fresh.__dict__)

    def _shard(self, event: ShardEvent) -> None:
        now_s = self.updated_s
        self.shards_new += 1
        self.audio_s += event.audio_s
        self.busy_s += event.busy_s
        self.bytes_read += event.bytes_read
        self.bytes_written += event.bytes_written
        self.shard_s = now_s
        for reason, count in event.failures.items():
            kind = reason_kind(reason)[:MAX_REASON_CHARACTERS]
            full = len(self.failures) - (OTHER in self.failures) >= MAX_REASONS
            self.failures[OTHER if full and kind not in self.failures else kind] += count
        self._count_worker(event.worker, WorkerCount(1, event.audio_s, event.busy_s, now_s))
        self._rank(event.slowest)
        self._mark(now_s)

    def _count_worker(self, address: str, count: WorkerCount) -> None:
        known = self.workers.pop(address, WorkerCount())
        known.add(count)
        self.workers[address] = known  # in the order of their last shards
        if len(self.workers) > MAX_WORKERS:
            self.gone.add(self.workers.pop(next(iter(self.workers))))

    def _rank(self, rows: tuple[tuple[str, float, float], ...]) -> None:
        """Keep the recordings that cost most beyond what their length costs at the run's mean speed.

        By seconds alone the longest recordings would lead, by seconds a second of audio the shortest.
        """
        mean = self.busy_s / self.audio_s if self.audio_s else 0.0
        known: dict[str, tuple[str, float, float]] = {}
        for row in (*self.slowest, *rows):  # a recording in two shards counts once, as its slower part
            known[row[0]] = max(row, known.get(row[0], row), key=lambda part: part[1])
        self.slowest = heapq.nlargest(MAX_SLOWEST, known.values(), key=lambda row: row[1] - mean * row[2])

    def _mark(self, time_s: float) -> None:
        if not self._marks or time_s - self._marks[-1].time_s >= MARK_EVERY_S:
            self._marks.append(Mark(time_s, self.shards_new, self.audio_s))
        while len(self._marks) > 1 and self._marks[1].time_s <= time_s - WINDOW_S[1]:
            self._marks.popleft()

    def _record(self) -> None:
        """Add a point to the series where one is due; a full series loses every second point."""
        time_s = self.updated_s - self.started_s
        if not self.ended and self.points and time_s - self.points[-1].time_s < self.interval_s:
            return
        if len(self.points) >= MAX_POINTS:
            self.points = self.points[::2]
            self.interval_s *= 2
        speed = self.audio_h_per_h_now(self.updated_s)
        self.points.append(
            Point(
                time_s, self.shards_done, self.audio_s / 3600, speed, self.failed, self.workers_now, self.memory_bytes
            )
        )
