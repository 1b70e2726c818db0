"""The progress of a stage: a live bar on a terminal, otherwise a log line every half minute."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from pipeline.errors import escaped
from pipeline.monitoring.stage_counters import StageCounters

CONSOLE = Console(stderr=True)
LOG_EVERY_S: Final = 30.0
SECONDS_BELOW_MIN: Final = 10
"""Durations below this many minutes have seconds."""

log = logging.getLogger(__name__)


class _Formatter(logging.Formatter):
    """Escapes messages: the name of a file may hold line breaks and commands to the terminal."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 the name is logging's
        """Return the line of a record."""
        record.message = escaped(record.message)
        return super().formatMessage(record)


def set_up_logging() -> None:
    """Log to stderr: in colour on a terminal, otherwise with date and level."""
    if CONSOLE.is_terminal:
        handler: logging.Handler = RichHandler(console=CONSOLE, show_path=False, log_time_format="%X", markup=False)
        handler.setFormatter(_Formatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    for name in ("pipeline", "model"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.INFO)


@dataclass(frozen=True)
class Tracker:
    """Counts the finished items of a stage and shows them."""

    counters: StageCounters
    refresh: Callable[[], None]

    def advance(self, items: int = 1, *, audio_s: float = 0.0, failed: int = 0) -> None:
        """Count items that were finished now, their seconds of audio, and how many of them failed."""
        self.counters.advance(time.time(), items, audio_s=audio_s, failed=failed)
        self.refresh()


@contextmanager
def track(
    title: str, total: int, unit: str, dashboard: str | None = None, *, transient: bool = False
) -> Iterator[Tracker]:
    """Show the progress of a stage of `total` items; call `Tracker.advance` for each finished item.

    A `transient` bar is removed from the terminal when the context ends.
    """
    now_s = time.time()
    counters = StageCounters(total=total, started_s=now_s, updated_s=now_s)
    with show(title, counters, unit, dashboard, transient=transient) as refresh:
        yield Tracker(counters, refresh)


@contextmanager
def show(
    title: str, counters: StageCounters, unit: str, dashboard: str | None = None, *, transient: bool = False
) -> Iterator[Callable[[], None]]:
    """Show `counters` while the context is open; call the yielded function after each change."""
    if dashboard:
        log.info("%s: dashboard at %s", title, dashboard)
    if not CONSOLE.is_terminal:
        yield _logger(title, counters, unit)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}  {{task.fields[detail]}}"),
        _TimeLeft(),
    )
    with Progress(*columns, console=CONSOLE, transient=transient) as bar:
        task = bar.add_task(title, total=counters.total - counters.done_before, detail="", counters=counters)
        yield lambda: bar.update(task, completed=counters.done_new, detail=_detail(counters, time.time()))


def _logger(title: str, counters: StageCounters, unit: str) -> Callable[[], None]:
    """Return a function that logs `counters` if the last line is LOG_EVERY_S old."""
    logged_s = time.time()

    def log_now_and_then() -> None:
        nonlocal logged_s
        now_s = time.time()
        if now_s - logged_s > LOG_EVERY_S:
            logged_s = now_s
            total = counters.total - counters.done_before
            parts = [f"{counters.done_new} of {total} {unit}", _detail(counters, now_s), _left(counters, now_s)]
            log.info("%s: %s", title, ", ".join(part for part in parts if part))

    return log_now_and_then


class _TimeLeft(ProgressColumn):
    """The time left by the task's counters: the same number as on the page and in the log."""

    def render(self, task: Task) -> Text:
        return Text(_left(task.fields["counters"], time.time()), style="progress.remaining")


def _detail(counters: StageCounters, time_s: float) -> str:
    """Return hours of audio, speed and failures of a stage that counts audio, otherwise failures if there are any."""
    parts = []
    if counters.audio_s:
        parts.append(f"{counters.audio_s / 3600:.2f} h of audio")
        parts.append(f"{counters.audio_h_per_h(time_s):,.0f} h/h")
    if counters.failed or counters.audio_s:
        parts.append(f"{counters.failed} failed")
    return ", ".join(parts)


def _left(counters: StageCounters, time_s: float) -> str:
    left_s = counters.left_s(time_s)
    return "" if left_s is None else f"{duration(left_s)} left"


def duration(seconds: float) -> str:
    """Return a duration as the page shows it: 9 s, 1 min 05 s, 12 min, 3 h 07 min, 2 d 4 h."""
    whole_s = round(seconds)
    days, hours, minutes = whole_s // 86400, whole_s // 3600 % 24, whole_s // 60 % 60
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes:02} min"
    if minutes:
        return f"{minutes} min" + (f" {whole_s % 60:02} s" if minutes < SECONDS_BELOW_MIN else "")
    return f"{whole_s} s"
