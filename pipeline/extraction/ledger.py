"""The ledger: what became of each recording."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from pipeline.config import PipelineConfig
from pipeline.corpus.manifest import masked_rows
from pipeline.schema import LEDGER_COLUMNS, STATUSES
from pipeline.store.records import ShardRecord


def build(manifest: pd.DataFrame, records: Iterable[ShardRecord], config: PipelineConfig) -> pd.DataFrame:
    """Return one row a recording in manifest order, with the columns LEDGER_COLUMNS.

    A recording that several shards hold has the worst of their statuses, and the sum of what they wrote. One that is
    masked is filtered, for the reason in the manifest.
    """
    ledger = pd.DataFrame({"recording_id": manifest["recording_id"]})
    unreadable = manifest["error"].notna()
    status = np.full(len(manifest), STATUSES.index("ok"))
    status[(manifest["sequences"] == 0).to_numpy()] = STATUSES.index("filtered")
    status[unreadable.to_numpy()] = STATUSES.index("failed")
    shortest_s = config.store.timesteps * config.features.hop_s
    reasons = manifest["error"].where(unreadable, "").to_numpy(dtype=object, copy=True)
    reasons[status == STATUSES.index("filtered")] = f"shorter than one sequence of {shortest_s:g} s"
    masked = masked_rows(manifest)
    status[masked], reasons[masked] = STATUSES.index("filtered"), manifest["masked"].to_numpy(object)[masked]
    decoded, written = np.zeros(len(manifest), np.int64), np.zeros(len(manifest), np.int64)
    for record in records:
        for outcome in record.outcomes:
            row, code = outcome.recording, STATUSES.index(outcome.status)
            if code > status[row]:
                status[row], reasons[row] = code, outcome.reason
            decoded[row] = max(decoded[row], outcome.decoded_frames)
            written[row] += outcome.sequences_written
    ledger["status"] = np.array(STATUSES)[status]
    ledger["reason"] = pd.array(reasons, dtype="string")
    ledger["decoded_frames"], ledger["sequences_written"] = decoded, written
    return ledger[list(LEDGER_COLUMNS)]


def counts(ledger: pd.DataFrame) -> dict[str, int]:
    """Return how many recordings ended in each status."""
    found = ledger["status"].value_counts()
    return {status: int(found.get(status, 0)) for status in STATUSES}


def failed_fraction(ledger: pd.DataFrame) -> float:
    """Return the fraction of recordings that failed."""
    return float((ledger["status"] == "failed").mean())
