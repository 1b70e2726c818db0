"""The report's sections on the corpus and on failures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from pipeline.corpus.manifest import languages_without, masked_rows
from pipeline.report import plots
from pipeline.report.results import Pictures, Results
from pipeline.schema import SILENT, SPLITS, STATUSES, reason_kind

MAX_REASONS: Final = 20
MAX_EXAMPLES: Final = 3
MIN_HOURS: Final = 10
"""A smaller corpus is measured in minutes."""

COLUMNS: Final = (*SPLITS, "total")

Amount = Mapping[str, float]
"""The `amount` of audio, and how many `recordings` and `speakers` it has."""


@dataclass(frozen=True)
class CorpusSection:
    """The amounts of audio in `unit`, by language and split.

    A cell is None if there is nothing. `without` has the languages that lack a split; `appends`, `masked` and
    `unnamed` count appends, masked recordings, and recordings without a named speaker. `silent` counts recordings that
    hold no sound, and `silent_filtered` those of them that were filtered.
    """

    unit: str
    duration_s: float
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Amount | None]]]
    total: Sequence[Amount | None]
    recordings: int
    appends: int
    masked: int
    unnamed: int
    silent: int
    silent_filtered: int
    without: Mapping[str, Sequence[str]]


def corpus(results: Results, pictures: Pictures) -> CorpusSection:
    """Return the amounts of audio, and draw them."""
    masked = masked_rows(results.manifest)
    silent = _silent_statuses(results.ledger)
    manifest = results.manifest[~masked]
    duration_s = float(manifest["duration_s"].sum())
    unit, unit_s = ("hours", 3600) if duration_s >= MIN_HOURS * 3600 else ("minutes", 60)
    everything = pd.concat([manifest, manifest.assign(split="total")])
    by_language = _amounts(everything, ["label", "split"], unit_s)
    by_split = _amounts(everything, ["split"], unit_s)
    drawn = by_language["amount"].unstack(fill_value=0).reindex(columns=list(SPLITS), fill_value=0.0)
    pictures.add("corpus", plots.amounts(drawn, unit, plots.language_colors(results.labels)))
    return CorpusSection(
        unit=unit,
        duration_s=duration_s,
        columns=COLUMNS,
        rows=[(label, [_cell(by_language, (label, split)) for split in COLUMNS]) for label in results.labels],
        total=[_cell(by_split, split) for split in COLUMNS],
        recordings=len(manifest),
        appends=int(results.manifest["append_index"].max()),
        masked=int(masked.sum()),
        unnamed=int(manifest["speaker"].isna().sum()),
        silent=len(silent),
        silent_filtered=silent.count("filtered"),
        without={split: languages_without(results.manifest, split, results.ledger) for split in SPLITS},
    )


def _silent_statuses(ledger: pd.DataFrame | None) -> list[str]:
    """Return the status of each recording without sound."""
    return [] if ledger is None else ledger["status"][ledger["reason"].str.startswith(SILENT)].tolist()


def _amounts(recordings: pd.DataFrame, by: list[str], unit_s: float) -> pd.DataFrame:
    table = recordings.groupby(by).agg(
        amount=("duration_s", "sum"), recordings=("recording_id", "size"), speakers=("speaker", "nunique")
    )
    return table.assign(amount=table["amount"] / unit_s)


def _cell(table: pd.DataFrame, key: Any) -> Amount | None:
    return {str(name): value for name, value in table.loc[key].items()} if key in table.index else None


@dataclass(frozen=True)
class Reason:
    """Why recordings were not fully used: `n` of them, with the ids of some."""

    status: str
    text: str
    n: int
    examples: Sequence[str]


@dataclass(frozen=True)
class FailureSection:
    """Recordings by status, what was stored, and the reasons of those that are not ok, the worst first.

    `more_recordings` recordings have one of `more_reasons` further reasons.
    """

    statuses: Mapping[str, int]
    recordings: int
    sequences: int
    stored_s: float | None
    reasons: Sequence[Reason]
    more_reasons: int
    more_recordings: int


def failures(results: Results) -> FailureSection | None:
    """Return the outcome of all recordings, or None if nothing has been extracted."""
    if results.ledger is None:
        return None
    statuses = results.ledger["status"].value_counts().reindex(list(STATUSES), fill_value=0)
    sequences = int(results.ledger["sequences_written"].sum())
    bad = results.ledger[results.ledger["status"] != "ok"]
    bad = bad.assign(kind=bad["reason"].map(reason_kind))
    kinds = _kinds(bad)
    return FailureSection(
        statuses={str(status): int(n) for status, n in statuses.items()},
        recordings=len(results.ledger),
        sequences=sequences,
        stored_s=None if results.sequence_s is None else sequences * results.sequence_s,
        reasons=[_reason(bad, status, kind) for status, kind in kinds.index[:MAX_REASONS]],
        more_reasons=max(0, len(kinds) - MAX_REASONS),
        more_recordings=int(kinds.iloc[MAX_REASONS:].sum()),
    )


def _kinds(bad: pd.DataFrame) -> pd.Series:
    """Return how many recordings have each (status, kind of reason), the worst and then the most frequent first."""
    kinds = bad.groupby(["status", "kind"]).size().rename("n").reset_index()
    kinds["severity"] = kinds["status"].map(STATUSES.index)
    kinds = kinds.sort_values(["severity", "n"], ascending=False, kind="stable")
    return kinds.set_index(["status", "kind"])["n"]


def _reason(bad: pd.DataFrame, status: str, kind: str) -> Reason:
    """Return one row; reasons that differ only in their numbers are one kind, and shown without the numbers."""
    part = bad[(bad["status"] == status) & (bad["kind"] == kind)]
    text = str(part["reason"].iloc[0]) if part["reason"].nunique() == 1 else kind
    return Reason(status, text, len(part), list(part["recording_id"].head(MAX_EXAMPLES)))
