"""Errors that a user can mend: each is one line that names the subject, the value and the remedy."""

from collections.abc import Sequence


class PipelineError(Exception):
    """A run that failed; the message is all that the user sees, the exit code is 1."""

    exit_code = 1


class UsageError(PipelineError):
    """A wrong argument, configuration or input folder, found before any work; the exit code is 2."""

    exit_code = 2


def few(names: Sequence[str], most: int = 3) -> str:
    """Return the first of many names, for a message of one line."""
    shown = ", ".join(names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown


def first_cause(error: BaseException) -> BaseException:
    """Return the innermost error that says something: libraries wrap a cause several times."""
    found, cause = error, error.__cause__ or error.__context__
    while isinstance(cause, Exception):
        found = cause if str(cause) else found
        cause = cause.__cause__ or cause.__context__
    return found


def in_one_line(error: BaseException) -> str:
    """Return the text of an error, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__
