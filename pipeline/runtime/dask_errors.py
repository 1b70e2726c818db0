"""The error of a lost scheduler, in one line."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from pipeline.errors import PipelineError

POOL_CLOSED: Final = "ConnectionPool is closed"
"""The message of Dask's RuntimeError from the moment on when a client has given its scheduler up."""


def scheduler_lost(address: str) -> PipelineError:
    """Return the error of a run whose scheduler is gone."""
    return PipelineError(
        f"the scheduler at {address} is gone; start it again and run the same command again: finished shards are kept"
    )


@contextmanager
def scheduler_needed(address: str) -> Iterator[None]:
    """Turn the errors of a context that calls the scheduler into `scheduler_lost`. No task may run in it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # Dask's CommClosedError is an OSError, and so is the time-out of a connection
        if not isinstance(error, OSError) and str(error) != POOL_CLOSED:
            raise
        raise scheduler_lost(address) from error
