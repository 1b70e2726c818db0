"""Counts of a running stage, its speed and the time left, which the terminal, the log and the page all show.

There is no clock here: every `time_s` is given by the caller, in seconds of one clock.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple

MARK_EVERY_S: Final = 1.0
WINDOW_S: Final = (30.0, 600.0)
"""The shortest and the longest time over which the current speed is measured."""
WINDOW_ITEMS: Final = 10
"""Items that one worker finishes within the window: workers that finish together would make a shorter window jump."""


class Mark(NamedTuple):
    """The items and the audio finished by a time."""

    time_s: float
    items: int
    audio_s: float


@dataclass
class StageCounters:
    """Finished items of a stage. Its size does not depend on their number."""

    total: int = 0
    done_before: int = 0
    """Items that were finished before the stage began."""
    started_s: float = 0.0
    updated_s: float = 0.0
    done_new: int = 0
    failed: int = 0
    audio_s: float = 0.0
    busy_s: float = 0.0
    """Time that workers spent on the finished items."""
    _marks: deque[Mark] = field(default_factory=deque)

    @property
    def done(self) -> int:
        """Finished items, including those finished before."""
        return self.done_before + self.done_new

    @property
    def left(self) -> int:
        """Items that are not finished."""
        return max(0, self.total - self.done)

    def advance(
        self, time_s: float, items: int = 1, *, audio_s: float = 0.0, busy_s: float = 0.0, failed: int = 0
    ) -> None:
        """Count items that were finished at `time_s`. An earlier time than the last counts as the last."""
        self.updated_s = max(self.updated_s, time_s)
        self.done_new += items
        self.audio_s += audio_s
        self.busy_s += busy_s
        self.failed += failed
        if not self._marks or self.updated_s - self._marks[-1].time_s >= MARK_EVERY_S:
            self._marks.append(Mark(self.updated_s, self.done_new, self.audio_s))
        while len(self._marks) > 1 and self._marks[1].time_s <= self.updated_s - WINDOW_S[1]:
            self._marks.popleft()

    def window(self, time_s: float) -> Mark:
        """Return the length of the window before `time_s`, and the items and seconds of audio finished in it."""
        shortest_s, longest_s = WINDOW_S
        mean_s = self.busy_s / self.done_new if self.done_new else 0.0
        since_s = time_s - min(max(WINDOW_ITEMS * mean_s, shortest_s), longest_s)
        begin = Mark(self.started_s, 0, 0.0)
        start = next((mark for mark in reversed(self._marks) if mark.time_s <= since_s), begin)
        return Mark(time_s - start.time_s, self.done_new - start.items, self.audio_s - start.audio_s)

    def audio_h_per_h_now(self, time_s: float) -> float:
        """Return hours of audio per hour in the window before `time_s`."""
        window = self.window(time_s)
        return window.audio_s / window.time_s if window.time_s > 0 else 0.0

    def audio_h_per_h(self, time_s: float) -> float:
        """Return hours of audio per hour from the beginning to `time_s`."""
        elapsed_s = time_s - self.started_s
        return self.audio_s / elapsed_s if elapsed_s > 0 else 0.0

    def left_s(self, time_s: float) -> float | None:
        """Return the seconds left at the current speed, None where no item was finished in the window."""
        window = self.window(time_s)
        return self.left * window.time_s / window.items if window.items else None
