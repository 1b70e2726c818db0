"""The place of a recording's samples: a file, a member of it, and a span of seconds; and why it cannot be read."""

from dataclasses import dataclass, replace


class AudioError(Exception):
    """A recording that cannot be used; the message is the reason in the ledger.

    `transient` is true where the file system is the cause: the same file may be readable later.
    """

    def __init__(self, reason: str, *, transient: bool = False) -> None:
        super().__init__(reason)
        self.transient = transient


@dataclass(frozen=True, slots=True)
class AudioSource:
    """Where the samples of a recording are.

    `container` is the path or URL of a file. `member` names the audio in a container that holds several (a file in an
    archive, a row of a table); it is None where the container is itself an audio file. A recording that is a segment
    of a longer one is the seconds [start_s, stop_s) of it; without `stop_s` it ends where the audio ends.
    """

    container: str
    member: str | None = None
    start_s: float = 0.0
    stop_s: float | None = None

    @property
    def is_segment(self) -> bool:
        """Whether the recording is a part of longer audio."""
        return self.start_s > 0 or self.stop_s is not None

    @property
    def whole(self) -> "AudioSource":
        """The audio that a segment is cut from."""
        return replace(self, start_s=0.0, stop_s=None) if self.is_segment else self

    def __reduce__(self) -> tuple[type["AudioSource"], tuple[str, str | None, float, float | None]]:
        """Pickle by the arguments: what dataclasses do by default takes as long as reading a header."""
        return AudioSource, (self.container, self.member, self.start_s, self.stop_s)

    def sample_range(self, sample_rate_hz: int) -> tuple[int, int | None]:
        """Return the samples [start, stop) of the audio at `sample_rate_hz`; `stop` is None for its end.

        Rounded as `librosa.load(offset=start_s, duration=stop_s - start_s)` rounds them.
        """
        start = int(self.start_s * sample_rate_hz)
        return start, None if self.stop_s is None else start + int((self.stop_s - self.start_s) * sample_rate_hz)

    def length(self, samples: int, sample_rate_hz: int) -> int:
        """Return how many samples the recording has if the audio has `samples`."""
        start, stop = self.sample_range(sample_rate_hz)
        return max(0, (samples if stop is None else min(stop, samples)) - start)
