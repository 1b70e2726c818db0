"""Generators that TensorFlow's threads read: keep freed memory, and stop cleanly at interpreter exit."""

import atexit
import ctypes
import threading
import time
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")

# <malloc.h> of glibc 2.x: M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, and DEFAULT_MMAP_THRESHOLD_MAX of 64-bit systems
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
MAX_MMAP_THRESHOLD = 32 * 2**20
KEPT_BYTES = 128 * 2**20

SETTLING_S = 0.02

_exiting = threading.Event()
_reading: set[object] = set()


def until_exit(blocks: Iterator[T]) -> Iterator[T]:
    """Yield from `blocks` until the interpreter exits, and let the exit wait for a block that is being read."""
    reader = object()
    while not _exiting.is_set():
        _reading.add(reader)
        try:
            block = next(blocks, None)
        finally:
            _reading.discard(reader)
        if block is None:
            return
        yield block


@atexit.register
def _wait_for_readers() -> None:
    """Wait at interpreter exit for blocks that are being read.

    Otherwise a script that holds a partly read iterator would never end: the exiting interpreter blocks a thread that
    waits for its lock, and TensorFlow waits for that thread.
    """
    _exiting.set()
    while _reading:
        time.sleep(SETTLING_S)
    time.sleep(SETTLING_S)  # until the last block has reached TensorFlow


def keep_freed_memory() -> None:
    """Make glibc reuse freed memory for the next block.

    TensorFlow lowers the thresholds when a dataset starts. Then each block of some megabytes is returned to the kernel
    when freed, and the next one costs page faults. Other C libraries have no such setting and do not need it.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
