"""The report's sections on the corpus and on failures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pipeline.corpus.manifest_summary import TOTAL, Amounts, amounts, languages_by_missing_split
from pipeline.corpus.speakers import SpeakerCounts, count_speakers
from pipeline.report import plots
from pipeline.report.ledger_counts import LedgerCounts, Reason
from pipeline.report.results import Pictures, Results
from pipeline.schema import SPLITS

MIN_HOURS: Final = 10
"""A smaller corpus is measured in minutes."""

COLUMNS: Final = (*SPLITS, TOTAL)

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


@dataclass(frozen=True)
class CorpusCounts:
    """What is counted in the rows of a manifest."""

    amounts: Amounts
    speakers: SpeakerCounts

    @classmethod
    def of(cls, results: Results) -> "CorpusCounts":
        """Count the recordings and speakers of an output folder."""
        return cls(amounts(results.manifest), count_speakers(results.manifest, results.output.root))

    def cell(self, label: str | None, split: str, unit_s: float) -> Amount | None:
        """Return the amount of a label, or of all; None if there is nothing."""
        table: Any = self.amounts.by_split if label is None else self.amounts.table
        key = split if label is None else (label, split)
        if key not in table.index:
            return None
        duration_s, recordings = table.loc[key, "duration_s"], table.loc[key, "recordings"]
        speakers = self.speakers.unmasked.get((label, None if split == TOTAL else split), 0)
        return {"amount": float(duration_s) / unit_s, "recordings": int(recordings), "speakers": speakers}


def corpus(results: Results, counts: CorpusCounts, stored: LedgerCounts | None, pictures: Pictures) -> CorpusSection:
    """Return the amounts of audio, and draw them; `stored` is None if nothing has been extracted."""
    table, by_split = counts.amounts.table, counts.amounts.by_split
    duration_s = float(by_split["duration_s"].get(TOTAL, 0.0))
    recordings = int(by_split["recordings"].get(TOTAL, 0))
    unit, unit_s = ("hours", 3600) if duration_s >= MIN_HOURS * 3600 else ("minutes", 60)
    drawn = (table["duration_s"] / unit_s).unstack(fill_value=0).reindex(columns=list(SPLITS), fill_value=0.0)
    pictures.add("corpus", plots.amounts(drawn, unit, plots.language_colors(results.labels)))
    return CorpusSection(
        unit=unit,
        duration_s=duration_s,
        columns=COLUMNS,
        rows=[(label, [counts.cell(label, split, unit_s) for split in COLUMNS]) for label in results.labels],
        total=[counts.cell(None, split, unit_s) for split in COLUMNS],
        recordings=recordings,
        appends=results.manifest.last_append,
        masked=len(results.manifest) - recordings,
        unnamed=counts.amounts.unnamed,
        silent=0 if stored is None else sum(stored.silent.values()),
        silent_filtered=0 if stored is None else stored.silent["filtered"],
        without=languages_by_missing_split(results.manifest, None if stored is None else stored.stored),
    )


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


def failures(results: Results, counts: LedgerCounts | None) -> FailureSection | None:
    """Return the outcome of all recordings, or None if nothing has been extracted."""
    if counts is None:
        return None
    return FailureSection(
        statuses=counts.statuses,
        recordings=sum(counts.statuses.values()),
        sequences=counts.sequences,
        stored_s=None if results.sequence_s is None else counts.sequences * results.sequence_s,
        reasons=counts.reasons,
        more_reasons=counts.more_reasons,
        more_recordings=counts.more_recordings,
    )
