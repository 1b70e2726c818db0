"""Progress: the log lines without a terminal, the bar on one, and the time left that both show."""

import io
import logging
import types
from collections.abc import Iterator

import pytest
from rich.console import Console

from pipeline.monitoring import progress
from pipeline.monitoring.progress import duration, set_up_logging, show, track
from pipeline.monitoring.stage_counters import StageCounters


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, as the only entry of a list."""
    now = [1e9]
    monkeypatch.setattr(progress, "time", types.SimpleNamespace(time=lambda: now[0]))
    return now


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """No terminal."""
    monkeypatch.setattr(progress, "CONSOLE", Console(file=io.StringIO(), force_terminal=False))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """The output on a terminal."""
    sent = io.StringIO()
    monkeypatch.setattr(progress, "CONSOLE", Console(file=sent, force_terminal=True, color_system=None, width=200))
    return sent


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr(logging.getLogger("pipeline"), "propagate", True)
    caplog.set_level(logging.INFO, "pipeline")
    return caplog


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (65, "1 min 05 s"), (600, "10 min"), (3599, "59 min"),
     (3600, "1 h 00 min"), (11_220, "3 h 07 min"), (187_200, "2 d 4 h")],
)  # fmt: skip
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.usefixtures("plain")
def test_without_a_terminal_a_line_is_logged_every_half_minute(
    clock: list[float], logged: pytest.LogCaptureFixture
) -> None:
    with track("extract", 100, "shards") as tracker:
        for _ in range(50):
            clock[0] += 4
            tracker.advance(audio_s=36, failed=0)
    # every 30 s, counted in steps of 4 s: after 32, 64, …
    assert len(logged.messages) == 6
    assert logged.messages[0] == "extract: 8 of 100 shards, 0.08 h of audio, 9 h/h, 0 failed, 6 min 08 s left"
    assert [message.split()[1] for message in logged.messages] == ["8", "16", "24", "32", "40", "48"]


@pytest.mark.usefixtures("plain")
def test_without_a_terminal_a_short_stage_says_nothing(clock: list[float], logged: pytest.LogCaptureFixture) -> None:
    with track("verify", 2, "shards") as tracker:
        tracker.advance()
        clock[0] += 29
        tracker.advance(2, failed=1)
    assert logged.messages == []


@pytest.mark.usefixtures("plain")
def test_stage_without_audio_shows_failures_if_there_are_any(
    clock: list[float], logged: pytest.LogCaptureFixture
) -> None:
    with track("verify", 10, "shards") as tracker:
        clock[0] += 31
        tracker.advance(5)
        clock[0] += 31
        tracker.advance(3, failed=2)
    assert logged.messages == ["verify: 5 of 10 shards, 31 s left", "verify: 8 of 10 shards, 2 failed, 21 s left"]


@pytest.mark.usefixtures("plain")
def test_dashboard_is_named_first(logged: pytest.LogCaptureFixture) -> None:
    with track("scan", 2, "headers", "http://127.0.0.1:8787/status"):
        assert logged.messages == ["scan: dashboard at http://127.0.0.1:8787/status"]


def test_terminal_shows_a_bar(terminal: io.StringIO, logged: pytest.LogCaptureFixture) -> None:
    with track("extract", 4, "shards") as tracker:
        tracker.advance(3, audio_s=7200, failed=1)
        tracker.advance(1)
    shown = terminal.getvalue()
    assert "extract" in shown
    assert "4/4" in shown
    assert "2.00 h of audio" in shown
    assert "1 failed" in shown
    assert logged.messages == []


def test_bar_shows_the_time_left_and_the_new_items_of_the_counters(clock: list[float], terminal: io.StringIO) -> None:
    counters = StageCounters(total=30, done_before=10, started_s=clock[0])
    with show("extract", counters, "shards") as refresh:
        clock[0] += 60
        counters.advance(clock[0], 5, audio_s=3600)
        refresh()
    shown = terminal.getvalue()
    assert "5/20" in shown
    assert "1.00 h of audio, 60 h/h, 0 failed" in shown
    assert counters.left_s(clock[0]) == 180
    assert "3 min 00 s left" in shown


def test_a_transient_bar_gives_its_line_to_what_is_logged_next(terminal: io.StringIO) -> None:
    with track("train lstm, epoch 1", 4, "steps", transient=True) as tracker:
        tracker.advance(3)
        progress.CONSOLE.print("in between")
    shown = terminal.getvalue()
    assert "train lstm, epoch 1" in shown
    assert "\x1b[2Kin between" in shown  # on a line of its own, the bar below it
    assert shown.endswith("\x1b[1A\x1b[2K")  # the line of the bar is erased


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


@pytest.mark.usefixtures("plain")
def test_names_cannot_forge_lines_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging()
    logging.getLogger("pipeline").warning("left out %s", "a\n2026-01-01 00:00:00 ERROR all lost\x1b[31m.txt")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(r"WARNING left out a\n2026-01-01 00:00:00 ERROR all lost\x1b[31m.txt")
