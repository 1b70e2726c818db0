"""The units of work: segments of recordings, the shards that they fill, and the tasks that extract shards."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.features.audio_source import AudioSource
from pipeline.schema import SILENT
from pipeline.store.records import RecordingOutcome, ShardRecord


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive sequences of one recording that land in one shard.

    `recording` is the row of the manifest, `source` the audio of the whole recording, `duration_s` its length and
    `size_bytes` the size of its file; `label` and `split` are codes. `first` is the first sequence within the
    recording, `place` the first within the shard, `count` the number of sequences. `masked` is the reason why they
    must not be used, or empty. `failure` is the reason why the recording has failed, found before the segment is read,
    or empty.
    """

    recording: int
    recording_id: str
    source: AudioSource
    size_bytes: int
    duration_s: float
    label: int
    split: int
    first: int
    count: int
    place: int
    masked: str = ""
    failure: str = ""

    def has_outcome(self, outcome: RecordingOutcome) -> bool:
        """Return whether an outcome is that of this segment as it is planned."""
        silent = outcome.reason.startswith(SILENT)
        masked = outcome.reason if outcome.status == "filtered" and not silent else ""
        same = (outcome.recording, masked) == (self.recording, self.masked)
        return same and self.failure in ("", outcome.reason)


@dataclass(frozen=True, slots=True)
class Shard:
    """The unit of writing: sequences [start, stop) of the store, and the segments that fill them."""

    index: int
    start: int
    stop: int
    segments: tuple[Segment, ...]

    def __str__(self) -> str:
        return f"shard {self.index} (sequences {self.start} to {self.stop})"

    def is_recorded_by(self, record: ShardRecord) -> bool:
        """Return whether a record is that of this shard as it is planned, finished."""
        return (
            record.finished
            and len(record.outcomes) == len(self.segments)
            and all(map(Segment.has_outcome, self.segments, record.outcomes))
        )


@dataclass(frozen=True, slots=True)
class Task:
    """Consecutive shards that one task extracts, one after the other.

    A finished shard, which an earlier try of the task wrote, is not written again, unless it is one of `replaced`:
    these shards were written by earlier runs, and what is stored of them has to be replaced.
    """

    shards: tuple[Shard, ...]
    replaced: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class PendingTask:
    """A task as it is submitted: the shards `indices`, whose segments a worker reads from the manifest.

    `replaced` is that of `Task`. `failures` are reasons, by row of the manifest, why recordings must not be read. If
    `only` is a row, the task has the segments of this recording alone.
    """

    indices: tuple[int, ...]
    replaced: frozenset[int] = frozenset()
    failures: Mapping[int, str] = field(default_factory=dict)
    only: int | None = None

    def __str__(self) -> str:
        first, last = self.indices[0], self.indices[-1]
        return f"shard {first}" if first == last else f"shards {first} to {last}"


def frames_of(segment: Segment, timesteps: int) -> tuple[int, int]:
    """Return the frames [start, stop) of the recording that `segment` holds."""
    return segment.first * timesteps, (segment.first + segment.count) * timesteps
