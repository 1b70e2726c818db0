"""Loading TensorFlow without the page of notes on drivers and instruction sets that it writes to stderr."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


def load_tensorflow() -> None:
    """Import TensorFlow and let it look for devices; a failure shows all that was held back."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # warnings and errors, no notes
    with _stderr_held_back():
        import tensorflow as tf  # noqa: PLC0415 that it is imported here is the point

        tf.config.list_physical_devices()


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
