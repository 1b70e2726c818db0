"""Loading TensorFlow and Keras: threads, settings, and no notes on drivers and instruction sets on stderr."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dask.system import cpu_count

from pipeline.errors import UsageError

INDEPENDENT_PARTS = 2
"""Parts of a training step that run at the same time, see `networks.lstm_cpu`. Each gets its share of the cores:
operations that use all cores would wait for each other."""


def load_tensorflow() -> None:
    """Import TensorFlow and Keras, set the number of threads and detect devices.

    Output to stderr is suppressed, and shown if this fails. The user's settings of Keras do not apply. Raises
    UsageError if Keras runs on another backend in this process already.
    """
    # errors only: warnings repeat exceptions at length, and report iterators that are still open when Python exits
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with _stderr_suppressed():
        with _default_keras_settings():
            import keras  # noqa: PLC0415
            import tensorflow as tf  # noqa: PLC0415 this is the place that imports it

        cores = cpu_count()  # that this process may use: TensorFlow counts those that a container may not use, too
        with suppress(RuntimeError):  # already in use: it keeps its threads
            tf.config.threading.set_intra_op_parallelism_threads(max(1, cores // INDEPENDENT_PARTS))
            tf.config.threading.set_inter_op_parallelism_threads(cores)
        tf.config.list_physical_devices()
    if keras.config.backend() != "tensorflow":
        raise UsageError(
            f"Keras was imported with the backend {keras.config.backend()}; set KERAS_BACKEND=tensorflow before it is "
            "imported"
        )


@contextmanager
def _default_keras_settings() -> Iterator[None]:
    """Hide the environment variables of Keras and the user's keras.json while Keras is imported, which reads them.

    Another backend could not run the training step, and another `floatx` or `epsilon` would change the results.
    """
    users = {name: os.environ.pop(name) for name in list(os.environ) if name.startswith("KERAS_")}
    with tempfile.TemporaryDirectory() as empty:
        os.environ["KERAS_HOME"] = empty
        try:
            yield
        finally:
            del os.environ["KERAS_HOME"]
            os.environ.update(users)


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
