"""Errors that a user can fix: each is one line with the subject, the value and the remedy."""

from collections.abc import Sequence


class PipelineError(Exception):
    """A run failed: the user sees the message alone, and the exit code is 1."""

    exit_code = 1


class UsageError(PipelineError):
    """An argument, a setting or an input folder is wrong, found before any work; the exit code is 2."""

    exit_code = 2


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, whose plural takes an s: "1 file", "2 files"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def few(names: Sequence[str], most: int = 3) -> str:
    """Return the first `most` names and the number of the others, for a message of one line."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def first_cause(error: BaseException) -> BaseException:
    """Return the innermost cause that has a message: libraries wrap errors several times."""
    found, cause = error, error.__cause__ or error.__context__
    while isinstance(cause, Exception):
        found = cause if str(cause) else found
        cause = cause.__cause__ or cause.__context__
    return found


def in_one_line(error: BaseException) -> str:
    """Return the text of an error, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
