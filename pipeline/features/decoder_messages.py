"""Keeps libmpg123, which libsndfile reads MP3 by, from writing on the terminal."""

import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager

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
        with tempfile.TemporaryFile(buffering=0) as captured:
            os.dup2(captured.fileno(), _STDERR)
            try:
                yield
            finally:
                os.dup2(terminal, _STDERR)
                os.close(terminal)
                if captured.tell():
                    captured.seek(0)
                    _pass_on(_MESSAGE.sub(b"", captured.read()))


def _pass_on(text: bytes) -> None:
    while text:
        text = text[os.write(_STDERR, text) :]
