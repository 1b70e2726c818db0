"""Progress: the numbers, the lines without a terminal, and the bar on one."""

import io
import logging
import time
import types
from collections.abc import Iterator

import pytest
from rich.console import Console

from pipeline.monitoring import progress
from pipeline.monitoring.progress import Tracker, set_up_logging, track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, as the only entry of a list; it goes on when a test says so."""
    now = [time.monotonic()]
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(monotonic=lambda: now[0]))
    return now


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal."""
    monkeypatch.setattr(progress, "CONSOLE", Console(file=io.StringIO(), force_terminal=False))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal is sent."""
    sent = io.StringIO()
    monkeypatch.setattr(progress, "CONSOLE", Console(file=sent, force_terminal=True, color_system=None, width=200))
    return sent


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    caplog.set_level(logging.INFO, "pipeline")
    return caplog


def test_tracker_adds_up(clock: list[float]) -> None:
    tracker = Tracker("extract", "shards", 10, started_s=clock[0])
    tracker.advance(1, audio_s=1800)
    tracker.advance(2, audio_s=1800, failed=3)
    assert (tracker.done, tracker.audio_s, tracker.failed) == (3, 3600, 3)


def test_time_left_follows_from_the_speed_so_far(clock: list[float]) -> None:
    tracker = Tracker("extract", "shards", 10, started_s=clock[0])
    assert tracker.left_s is None
    clock[0] += 60
    assert tracker.left_s is None
    tracker.advance(4)
    assert tracker.left_s == pytest.approx(90)
    tracker.advance(6)
    assert tracker.left_s == 0


def test_detail_is_audio_speed_and_failures(clock: list[float]) -> None:
    tracker = Tracker("extract", "shards", 10, started_s=clock[0])
    tracker.advance(1, audio_s=5400)
    clock[0] += 1.5
    assert tracker.detail == "1.50 h of audio, 3,600 h/h, 0 failed"
    tracker.advance(1, failed=2)
    assert tracker.detail.endswith(", 2 failed")


def test_detail_without_audio_is_failures_if_any(clock: list[float]) -> None:
    tracker = Tracker("verify", "shards", 10, started_s=clock[0])
    tracker.advance(1)
    assert tracker.detail == ""
    tracker.advance(1, failed=1)
    assert tracker.detail == "1 failed"


def test_speed_in_the_first_instant_is_a_number(clock: list[float]) -> None:
    tracker = Tracker("extract", "shards", 10, started_s=clock[0])
    tracker.advance(1, audio_s=3600)
    assert tracker.detail.startswith("1.00 h of audio, ")


@pytest.mark.usefixtures("plain")
def test_without_a_terminal_a_line_comes_now_and_then(clock: list[float], logged: pytest.LogCaptureFixture) -> None:
    with track("extract", 100, "shards") as reporter:
        for _ in range(50):
            clock[0] += 4
            reporter.advance(audio_s=36, failed=0)
    # every 30 s, counted in steps of 4 s: after 32, 64, …
    assert len(logged.messages) == 6
    assert logged.messages[0] == "extract: 8 of 100 shards, 0.08 h of audio, 9 h/h, 0 failed, 6 min left"
    assert [message.split()[1] for message in logged.messages] == ["8", "16", "24", "32", "40", "48"]


@pytest.mark.usefixtures("plain")
def test_without_a_terminal_a_short_stage_says_nothing(clock: list[float], logged: pytest.LogCaptureFixture) -> None:
    with track("verify", 2, "shards") as reporter:
        reporter.advance()
        clock[0] += 29
        reporter.advance(2, failed=1)
    assert logged.messages == []


@pytest.mark.usefixtures("plain")
def test_dashboard_is_named_first(logged: pytest.LogCaptureFixture) -> None:
    with track("scan", 2, "headers", "http://127.0.0.1:8787/status"):
        assert logged.messages == ["scan: dashboard at http://127.0.0.1:8787/status"]


def test_terminal_shows_a_bar(terminal: io.StringIO, logged: pytest.LogCaptureFixture) -> None:
    with track("extract", 4, "shards") as reporter:
        reporter.advance(3, audio_s=7200, failed=1)
        reporter.advance(1)
    shown = terminal.getvalue()
    assert "extract" in shown
    assert "4/4" in shown
    assert "2.00 h of audio" in shown
    assert "1 failed" in shown
    assert logged.messages == []


def test_errors_pass_through_the_bar(terminal: io.StringIO) -> None:
    with pytest.raises(ValueError, match="in the stage"), track("extract", 4, "shards"):
        raise ValueError("in the stage")


@pytest.fixture
def loggers() -> Iterator[list[logging.Logger]]:
    """The loggers that a run sets up, as they were afterwards."""
    chosen = [logging.getLogger(name) for name in ("pipeline", "model")]
    before = [(logger.handlers, logger.propagate, logger.level) for logger in chosen]
    yield chosen
    for logger, (handlers, propagate, level) in zip(chosen, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.mark.usefixtures("plain", "loggers")
def test_log_lines_without_a_terminal_have_a_date_and_a_level(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    logging.getLogger("pipeline.corpus.scan").warning("%d files", 3)
    logging.getLogger("pipeline.corpus.scan").debug("not shown")
    captured = capsys.readouterr()
    assert captured.out == ""
    date, time, *rest = captured.err.split()
    assert (len(date), len(time), rest) == (10, 8, ["WARNING", "3", "files"])


@pytest.mark.usefixtures("loggers")
def test_log_lines_on_a_terminal_are_shown_as_they_are(terminal: io.StringIO) -> None:
    set_up_logging()
    logging.getLogger("model.train").info("[bold]de[/bold] <script>")
    assert "[bold]de[/bold] <script>" in terminal.getvalue()
