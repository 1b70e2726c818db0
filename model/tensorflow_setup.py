"""Loading TensorFlow: its threads, and without its notes on drivers and instruction sets on stderr."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dask.system import cpu_count

INDEPENDENT_PARTS = 2
"""Parts of a training step that run at the same time, see `networks.lstm_cpu`. Each gets its share of the cores:
operations that use all cores would wait for each other."""


def load_tensorflow() -> None:
    """Import TensorFlow, set its number of threads and detect devices.

    Output to stderr is suppressed, and shown if this fails.
    """
    # errors only: warnings repeat exceptions at length, and report iterators that are still open when Python exits
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _stderr_suppressed():
        import tensorflow as tf  # noqa: PLC0415 this is the place that imports it

        cores = cpu_count()  # that this process may use: TensorFlow counts those that a container may not use, too
        with suppress(RuntimeError):  # already in use: it keeps its threads
            tf.config.threading.set_intra_op_parallelism_threads(max(1, cores // INDEPENDENT_PARTS))
            tf.config.threading.set_inter_op_parallelism_threads(cores)
        tf.config.list_physical_devices()


@contextmanager
def _stderr_suppressed() -> Iterator[None]:
    """Redirect file descriptor 2, because C++ libraries do not write through sys.stderr; print it after a failure."""
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
