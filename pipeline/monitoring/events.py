"""Events of a running extraction, as the driver reports them and as they travel to the scheduler."""

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter


class SlowRecording(NamedTuple):
    """The seconds of work on a recording within one shard, and the seconds of audio."""

    recording_id: str
    work_s: float
    audio_s: float


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BeginEvent(_Event):
    """A stage begins: the shards of its plan, and how many of them were finished before."""

    kind: Literal["begin"] = "begin"
    stage: str
    shards: int
    done: int


class ShardEvent(_Event):
    """A shard is finished. `failures` counts recordings by reason; `busy_s` is the worker's time."""

    kind: Literal["shard"] = "shard"
    worker: str
    audio_s: float
    busy_s: float
    failures: dict[str, int] = {}
    slowest: tuple[SlowRecording, ...] = ()
    bytes_read: int = 0
    bytes_written: int = 0


class ClusterEvent(_Event):
    """The number of workers now, and their memory in use."""

    kind: Literal["cluster"] = "cluster"
    workers: int
    memory_bytes: int


class EndEvent(_Event):
    """The stage has ended, with all shards finished or not."""

    kind: Literal["end"] = "end"


Event = BeginEvent | ShardEvent | ClusterEvent | EndEvent

_EVENTS: TypeAdapter[list[Event]] = TypeAdapter(list[Annotated[Event, Field(discriminator="kind")]])


def to_json(events: Iterable[Event]) -> list[dict[str, Any]]:
    """Return events as JSON values."""
    return [event.model_dump(mode="json") for event in events]


def from_json(events: Iterable[Mapping[str, Any]]) -> list[Event]:
    """Return the events that `to_json` wrote; raises pydantic.ValidationError for anything else."""
    return _EVENTS.validate_python(list(events))
