"""Keeps libmpg123, which libsndfile reads MP3 by, from writing on the terminal."""

import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

_STDERR = 2
_MESSAGE = re.compile(rb"(?:^\n)*^(?:Note: |Warning: |\[src/libmpg123/|mpg123 ).*\n?", re.MULTILINE)
_lock = threading.Lock()


@contextmanager
def without_decoder_messages() -> Iterator[None]:
    """Drop what libmpg123 writes to standard error within the context; it names no file, and there is no switch.

    Standard error belongs to the process: what other threads write meanwhile is passed on at the end.
    """
    with _lock:
        try:
            terminal = os.dup(_STDERR)
        except OSError:  # the process has no standard error
            yield
            return
        captured = _capture_file(os.getpid())
        os.dup2(captured, _STDERR)
        try:
            yield
        finally:
            os.dup2(terminal, _STDERR)
            os.close(terminal)
            if size := os.lseek(captured, 0, os.SEEK_CUR):
                _pass_on(_MESSAGE.sub(b"", os.pread(captured, size, 0)))
                os.lseek(captured, 0, os.SEEK_SET)


@cache
def _capture_file(_process: int) -> int:
    """Return the descriptor of a file without a name, one per process; making it takes longer than an MP3's header."""
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _pass_on(text: bytes) -> None:
    while text:
        text = text[os.write(_STDERR, text) :]
