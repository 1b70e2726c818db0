"""Loading TensorFlow: its threads, and no page of notes on drivers and instruction sets on stderr."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

INDEPENDENT_PARTS = 2
"""Of a training step, see `recurrence`: cores are shared among them, for operations that split over all cores wait for
one another."""


def load_tensorflow() -> None:
    """Import TensorFlow, set its threads and let it look for devices; a failure shows all that was held back."""
    # errors alone: warnings say over pages what comes as an exception, and tell of iterators left at Python's end
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _stderr_held_back():
        import tensorflow as tf  # noqa: PLC0415 that it is imported here is the point

        with suppress(RuntimeError):  # it runs already, with the threads that it has
            tf.config.threading.set_intra_op_parallelism_threads(max(1, _cores() // INDEPENDENT_PARTS))
        tf.config.list_physical_devices()


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _stderr_held_back() -> Iterator[None]:
    """Redirect the file descriptor, because C++ libraries do not write through sys.stderr."""
    sys.stderr.flush()
    original = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            held.seek(0)
            with os.fdopen(os.dup(original), "wb") as stderr:
                shutil.copyfileobj(held, stderr)
            raise
        finally:
            os.dup2(original, 2)
            os.close(original)
