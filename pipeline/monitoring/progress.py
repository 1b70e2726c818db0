"""What a person sees of a run: a live bar on a terminal, a log line now and then elsewhere."""

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

CONSOLE = Console(stderr=True)
LOG_EVERY_S = 30.0

log = logging.getLogger(__name__)


def set_up_logging() -> None:
    """Log to stderr: in colour on a terminal, with dates elsewhere."""
    if CONSOLE.is_terminal:
        handler: logging.Handler = RichHandler(console=CONSOLE, show_path=False, log_time_format="%X", markup=False)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    for name in ("pipeline", "model"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


@dataclass
class Tracker:
    """How far a stage is. Audio and failures are shown where a stage counts them."""

    title: str
    unit: str
    total: int
    done: int = 0
    audio_s: float = 0.0
    failed: int = 0
    started_s: float = field(default_factory=time.monotonic)

    def advance(self, items: int, *, audio_s: float = 0.0, failed: int = 0) -> None:
        """Count finished items."""
        self.done += items
        self.audio_s += audio_s
        self.failed += failed

    @property
    def detail(self) -> str:
        """Audio hours, hours per hour and failures, for a stage that counts audio; else failures if any."""
        elapsed_s = time.monotonic() - self.started_s
        parts = []
        if self.audio_s:
            parts.append(f"{self.audio_s / 3600:.2f} h of audio")
            parts.append(f"{self.audio_s / max(elapsed_s, 1e-9):,.0f} h/h")
        if self.failed or self.audio_s:
            parts.append(f"{self.failed} failed")
        return ", ".join(parts)

    @property
    def left_s(self) -> float | None:
        """Seconds left at the speed so far."""
        elapsed_s = time.monotonic() - self.started_s
        return elapsed_s / self.done * (self.total - self.done) if self.done else None


class _Reporter:
    """Shows a tracker after each change."""

    def __init__(self, tracker: Tracker, bar: Progress | None) -> None:
        self._tracker, self._bar = tracker, bar
        self._task = bar.add_task(tracker.title, total=tracker.total, detail="") if bar else None
        self._logged_s = time.monotonic()

    def advance(self, items: int = 1, *, audio_s: float = 0.0, failed: int = 0) -> None:
        tracker = self._tracker
        tracker.advance(items, audio_s=audio_s, failed=failed)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=tracker.done, detail=tracker.detail)
        elif time.monotonic() - self._logged_s > LOG_EVERY_S:
            self._logged_s = time.monotonic()
            detail = f", {tracker.detail}" if tracker.detail else ""
            left = "" if tracker.left_s is None else f", {tracker.left_s / 60:.0f} min left"
            log.info("%s: %d of %d %s%s%s", tracker.title, tracker.done, tracker.total, tracker.unit, detail, left)


@contextmanager
def track(title: str, total: int, unit: str, dashboard: str | None = None) -> Iterator[_Reporter]:
    """Show the progress of `total` items while the context is open; call `advance` for each that is done."""
    if dashboard:
        log.info("%s: dashboard at %s", title, dashboard)
    tracker = Tracker(title, unit, total)
    if not CONSOLE.is_terminal:
        yield _Reporter(tracker, None)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}  {{task.fields[detail]}}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=CONSOLE) as bar:
        yield _Reporter(tracker, bar)
