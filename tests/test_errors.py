"""Errors: exit codes, and lists of names that fit one line."""

import os
from asyncio import CancelledError

import pytest

from pipeline.errors import PipelineError, UsageError, escaped, few, first_cause, in_one_line


def test_usage_errors_are_pipeline_errors_with_their_own_exit_code() -> None:
    assert issubclass(UsageError, PipelineError)
    assert (PipelineError.exit_code, UsageError.exit_code) == (1, 2)


@pytest.mark.parametrize(
    ("names", "text"),
    [
        ([], ""),
        (["a"], "a"),
        (["a", "b", "c"], "a, b, c"),
        (["a", "b", "c", "d"], "a, b, c and 1 more"),
        (["a"] * 100, "a, a, a and 97 more"),
    ],
)
def test_few_names_the_first_and_counts_the_rest(names: list[str], text: str) -> None:
    assert few(names) == text


def test_few_shows_as_many_as_asked_for() -> None:
    assert few(["a", "b", "c"], most=1) == "a and 2 more"


def test_first_cause_is_behind_all_that_wraps_it() -> None:
    first, last = OSError("refused"), RuntimeError("failed")
    last.__cause__ = TimeoutError()
    last.__cause__.__context__ = first
    assert first_cause(last) is first
    assert first_cause(first) is first


def test_cause_that_says_nothing_is_not_the_first() -> None:
    error = OSError("timed out after 5 s")
    error.__cause__ = TimeoutError()
    error.__cause__.__cause__ = CancelledError("of the waiting")
    assert first_cause(error) is error


def test_error_in_one_line_has_its_text_or_its_type() -> None:
    assert in_one_line(OSError("connection\n  refused")) == "connection refused"
    assert in_one_line(TimeoutError()) == "TimeoutError"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain, ünï, 日本語, می‌شود, 🎤", "plain, ünï, 日本語, می‌شود, 🎤"),
        ("a\n2026-01-01 ERROR b", r"a\n2026-01-01 ERROR b"),
        ("\x1b[31mred\x7f\x9b", r"\x1b[31mred\x7f\x9b"),
        ("gpj.\u202ewav\u2028", r"gpj.\u202ewav\u2028"),
        (os.fsdecode(b"fran\xe7ais"), r"fran\xe7ais"),
    ],
)
def test_names_are_escaped_where_they_would_forge_a_line_or_command_a_terminal(text: str, expected: str) -> None:
    assert escaped(text) == expected


def test_only_names_that_are_not_utf_8_change_where_nothing_else_may() -> None:
    assert escaped(os.fsdecode(b"a\nb\xe7"), only_surrogates=True) == "a\nb\\xe7"
