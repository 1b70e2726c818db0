"""What a generator must heed whose blocks TensorFlow's threads ask for: glibc's memory, and Python's end."""

import atexit
import ctypes
import threading
import time
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")

# of malloc.h; the second is the highest that glibc takes
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 * 2**20
KEPT_BYTES = 128 * 2**20

SETTLING_S = 0.02

_ending = threading.Event()
_reading: set[object] = set()


def until_exit(blocks: Iterator[T]) -> Iterator[T]:
    """Yield what comes until Python ends, and let it see when one is being read."""
    me = object()
    while not _ending.is_set():
        _reading.add(me)
        try:
            block = next(blocks, None)
        finally:
            _reading.discard(me)
        if block is None:
            return
        yield block


@atexit.register
def _let_readers_end() -> None:
    """Wait for blocks that are being read when Python ends.

    It takes no thread back that waits for it then, and TensorFlow would wait for this thread for ever: a script that
    holds an iterator which it has not read to its end would not end either.
    """
    _ending.set()
    while _reading:
        time.sleep(SETTLING_S)
    time.sleep(SETTLING_S)  # for what is handed over


def keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next block.

    TensorFlow sets the thresholds low when a dataset starts, and then every block of some megabytes is given back to
    the kernel and comes again as page faults. Other C libraries have no such setting, and no need of it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
