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


def is_lost(error: OSError | RuntimeError) -> bool:
    """Whether an error of a call of the scheduler means that it is gone."""
    # Dask's CommClosedError is an OSError, and so is the time-out of a connection
    return isinstance(error, OSError) or str(error) == POOL_CLOSED


@contextmanager
def scheduler_needed(address: str) -> Iterator[None]:
    """Turn the errors of a context that calls the scheduler into `scheduler_lost`. No task may run in it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not is_lost(error):
            raise
        raise scheduler_lost(address) from error
