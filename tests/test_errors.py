"""Errors: exit codes, and lists of names that fit one line."""

import pytest

from pipeline.errors import PipelineError, UsageError, few


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
