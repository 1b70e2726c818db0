"""Errors that a user can fix: each is one line with the subject, the value and the remedy."""

import re
from collections.abc import Sequence
from typing import Final

_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""Control characters, line separators, changes of direction, and what Python makes of bytes that are not UTF-8."""
_SURROGATES: Final = re.compile("[\ud800-\udfff]")


class PipelineError(Exception):
    """A run failed: the user sees the message alone, and the exit code is 1."""

    exit_code = 1


class UsageError(PipelineError):
    """An argument, a setting or an input folder is wrong, found before any work; the exit code is 2."""

    exit_code = 2


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, whose plural takes an s: "1 file", "2 files"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def few(names: Sequence[str], most: int = 3, count: int | None = None) -> str:
    """Return the first `most` names and the number of the others, for a message of one line.

    `count` is the number of all names, if `names` has only the first of them.
    """
    shown, others = ", ".join(names[:most]), (len(names) if count is None else count) - most
    return f"{shown} and {others} more" if others > 0 else shown


def escaped(text: str, *, only_surrogates: bool = False) -> str:
    r"""Return `text` with an escape, such as \n or \x1b, for what would forge a line or command a terminal.

    A byte of a file name that is not UTF-8 becomes \xNN; with `only_surrogates` nothing else changes.
    """
    return (_SURROGATES if only_surrogates else _UNPRINTABLE).sub(_escape, text)


def _escape(found: re.Match[str]) -> str:
    # Python reads the byte NN of a name that is not UTF-8 as the lone surrogate DCNN (PEP 383)
    return ascii(found[0])[1:-1].replace("\\udc", "\\x")


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
