"""The ledger: the outcome of each recording."""

from collections.abc import Iterable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from pipeline.config import PipelineConfig
from pipeline.corpus.manifest import masked_rows
from pipeline.errors import PipelineError, few
from pipeline.extraction.outcomes import Outcomes
from pipeline.outputs import OutputFolder
from pipeline.schema import LEDGER_COLUMNS, SILENT, STATUSES
from pipeline.storage import read_parquet
from pipeline.store.records import REPAIR

OK, SHORT, FILTERED, FAILED = range(len(STATUSES))
"""Positions in STATUSES; a larger one is worse."""


def read(output: OutputFolder) -> pd.DataFrame:
    """Return the ledger of an output folder; raises PipelineError for one that is damaged."""
    ledger = read_parquet(output.ledger, REPAIR)
    missing = [name for name in LEDGER_COLUMNS if name not in ledger]
    if missing:
        raise PipelineError(f"{output.ledger} is damaged (it has no column {few(missing)}); {REPAIR}")
    return ledger


def find(output: OutputFolder) -> pd.DataFrame | None:
    """Return the ledger, or None if there is none that can be read."""
    try:
        return read(output)
    except (FileNotFoundError, PipelineError):
        return None


def build(manifest: pd.DataFrame, outcomes: Iterable[Outcomes], config: PipelineConfig) -> pd.DataFrame:
    """Return the ledger: one row per recording in the order of the manifest, with the columns LEDGER_COLUMNS.

    A recording in several shards has the worst of its statuses and the sum of its sequences. `outcomes` may come in
    any order. A masked recording is filtered, with the reason in the manifest.
    """
    unreadable, masked = manifest["error"].notna().to_numpy(), masked_rows(manifest)
    status = np.full(len(manifest), OK)
    status[(manifest["sequences"] == 0).to_numpy()] = FILTERED
    status[unreadable] = FAILED
    reasons = np.full(len(manifest), "", object)
    shortest_s = config.store.timesteps * config.features.hop_s
    reasons[status == FILTERED] = f"shorter than one sequence of {shortest_s:g} s"
    reasons[unreadable] = manifest["error"].to_numpy(object)[unreadable]
    status[masked], reasons[masked] = FILTERED, manifest["masked"].to_numpy(object)[masked]
    decoded, written = np.zeros(len(manifest), np.int64), np.zeros(len(manifest), np.int64)
    place = np.full(len(manifest), -1, np.int64)  # the shard that gave the reason
    for part in outcomes:
        np.maximum.at(decoded, part.recording, part.decoded_frames)
        np.add.at(written, part.recording, part.sequences_written)
        noted = np.flatnonzero((part.status != OK) | (part.reason != 0))
        columns = (part.recording, part.status, part.reason, part.shard)
        for row, code, reason, shard in zip(*(column[noted].tolist() for column in columns), strict=True):
            earlier = shard < place[row] if code != OK else shard >= place[row]
            if code > status[row] or (code == status[row] and earlier):
                status[row], reasons[row], place[row] = code, part.reasons[reason], shard
    ledger = pd.DataFrame({
        "recording_id": manifest["recording_id"],
        "status": np.array(STATUSES)[status],
        "reason": pd.array(reasons, dtype="string"),
        "decoded_frames": decoded,
        "sequences_written": written,
    })  # fmt: skip
    return ledger[list(LEDGER_COLUMNS)]


def silent_rows(ledger: pd.DataFrame) -> NDArray[np.bool_]:
    """Return for each recording whether it was read and holds no sound: (row,) bool."""
    return np.asarray(ledger["reason"].str.startswith(SILENT), np.bool_)


def counts(ledger: pd.DataFrame) -> dict[str, int]:
    """Return the number of recordings by status, in the order of STATUSES."""
    found = ledger["status"].value_counts()
    return {status: int(found.get(status, 0)) for status in STATUSES}


def failed_fraction(ledger: pd.DataFrame) -> float:
    """Return the fraction of recordings that failed."""
    return float((ledger["status"] == "failed").mean())
