"""Keeping the scheduler's memory constant: Dask notes every submission for ever, and this clears the notes.

Written against distributed 2026.8.0 (`Span.metadata["collections"]` gets one entry per `Client.submit`). The scheduler
may lack this package. The module is therefore pickled by value and imports nothing of the project.
"""

import sys

import cloudpickle
from distributed import Scheduler


def clear_submission_notes(dask_scheduler: Scheduler) -> None:
    """Clear the notes; for `Client.run_on_scheduler`."""
    spans = dask_scheduler.extensions.get("spans")
    for span in spans.spans.values() if spans else ():
        if span.metadata:
            span.metadata["collections"].clear()


cloudpickle.register_pickle_by_value(sys.modules[__name__])
