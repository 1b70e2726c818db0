"""The report's sections on the corpus and on failures."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from pipeline.corpus.manifest_summary import TOTAL, Amounts, amounts, languages_by_missing_split
from pipeline.corpus.speakers import SpeakerCounts, count_speakers
from pipeline.extraction import ledger
from pipeline.report import plots
from pipeline.report.results import Pictures, Results
from pipeline.schema import SPLITS, STATUSES, reason_kind

MAX_REASONS: Final = 20
MAX_EXAMPLES: Final = 3
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


def corpus(results: Results, counts: CorpusCounts, pictures: Pictures) -> CorpusSection:
    """Return the amounts of audio, and draw them."""
    table, by_split = counts.amounts.table, counts.amounts.by_split
    duration_s = float(by_split["duration_s"].get(TOTAL, 0.0))
    recordings = int(by_split["recordings"].get(TOTAL, 0))
    unit, unit_s = ("hours", 3600) if duration_s >= MIN_HOURS * 3600 else ("minutes", 60)
    drawn = (table["duration_s"] / unit_s).unstack(fill_value=0).reindex(columns=list(SPLITS), fill_value=0.0)
    pictures.add("corpus", plots.amounts(drawn, unit, plots.language_colors(results.labels)))
    silent, stored = _of_ledger(results)
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
        silent=silent.total(),
        silent_filtered=silent["filtered"],
        without=languages_by_missing_split(results.manifest, stored),
    )


def _of_ledger(results: Results) -> tuple[Counter[str], NDArray[np.bool_] | None]:
    """Return the statuses of recordings without sound, and which recordings are stored: a byte for each."""
    if not results.has_ledger:
        return Counter(), None
    silent, stored = Counter[str](), []
    for rows in ledger.read(results.output, ["status", "reason", "sequences_written"]):
        silent.update(rows["status"][ledger.silent_rows(rows)])
        stored.append((rows["sequences_written"] > 0).to_numpy(np.bool_))
    return silent, np.concatenate([np.empty(0, np.bool_), *stored])


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
    if not results.has_ledger:
        return None
    sequences, found = 0, dict[tuple[str, str], _Kind]()
    for rows in ledger.read(results.output, ["recording_id", "status", "reason", "sequences_written"]):
        sequences += int(rows["sequences_written"].sum())
        bad = rows[rows["status"] != "ok"]
        for name, status, reason in zip(bad["recording_id"], bad["status"], bad["reason"], strict=True):
            found.setdefault((status, reason_kind(reason)), _Kind(reason)).add(name, reason)
    statuses, kinds = ledger.counts(results.output), sorted(found, key=lambda key: _severity(key, found[key].n))
    return FailureSection(
        statuses=statuses,
        recordings=sum(statuses.values()),
        sequences=sequences,
        stored_s=None if results.sequence_s is None else sequences * results.sequence_s,
        reasons=[found[key].shown(*key) for key in kinds[:MAX_REASONS]],
        more_reasons=max(0, len(kinds) - MAX_REASONS),
        more_recordings=sum(found[key].n for key in kinds[MAX_REASONS:]),
    )


def _severity(key: tuple[str, str], n: int) -> tuple[int, int, str, str]:
    """Return by what reasons are sorted: the worst and then the most frequent first."""
    return -STATUSES.index(key[0]), -n, *key


@dataclass
class _Kind:
    """The recordings whose reasons differ only in their numbers: `n` of them, and the first ids."""

    reason: str
    n: int = 0
    same: bool = True
    examples: list[str] = field(default_factory=list)

    def add(self, name: str, reason: str) -> None:
        """Count a recording."""
        self.n, self.same = self.n + 1, self.same and reason == self.reason
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(name)

    def shown(self, status: str, kind: str) -> Reason:
        """Return one row; the numbers are shown if they are equal in all."""
        return Reason(status, self.reason if self.same else kind, self.n, self.examples)
