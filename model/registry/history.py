"""Decisions on which model serves: pure, the history alone says which one does, did and may not again."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from pipeline.errors import UsageError

Version = str
"""Digest of a model."""


class Estimate(BaseModel):
    """A value with its interval; None where nothing is known of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        return f"{self.value:.3f}" + ("" if self.low is None else f" ({self.low:.3f} to {self.high:.3f})")


class Comparison(BaseModel):
    """What the comparison of a challenger with the champion came to; without a champion, with chance."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    promoted: bool
    reason: str
    challenger_f1: Estimate | None = None
    champion_f1: Estimate | None = None
    gain: Estimate | None = None
    better_in: float | None = None
    """Fraction of resamples in which the gain was above what the rule asks."""
    recordings: int | None = None
    speakers: int | None = None


class PromotionRequest(BaseModel):
    """What is decided: whether a model is to serve, on which store and by which rule it is judged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    challenger: Version
    model: str
    """Its name among the models of a run."""
    store: dict[str, str]
    rule: dict[str, float]


class Decision(BaseModel):
    """One line of the history."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: AwareDatetime
    kind: Literal["promoted", "refused", "rolled back"]
    reason: str
    by: str
    champion: Version | None
    """The model that serves from here on."""
    run_key: str | None = None
    request: PromotionRequest | None = None
    comparison: Comparison | None = None

    @property
    def time(self) -> str:
        """When it was decided, as people read it."""
        return utc(self.at)

    @property
    def subject(self) -> Version | None:
        """The version that was decided on."""
        return self.request.challenger if self.request else self.champion


class History(BaseModel):
    """All decisions, the oldest first; only ever added to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    champion: Version | None = None
    """For readers of the file; what the last decision says."""
    decisions: tuple[Decision, ...] = Field(default=())

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        line: list[Version] = []
        ever: set[Version] = set()
        for number, decision in enumerate(self.decisions, 1):
            version, before = decision.champion, line[-1] if line else None
            challenger = decision.request.challenger if decision.request else None
            follows = {
                "promoted": version is not None and version == challenger != before,
                "refused": version == before and challenger is not None,
                "rolled back": version in ever and version != before,
            }
            if not follows[decision.kind]:
                raise ValueError(f"decision {number} ({decision.kind}) does not follow from those before it")
            line = _after(line, decision)
            ever.update(line)
        if self.champion != (line[-1] if line else None):
            raise ValueError(f"champion {self.champion} is not the one of the last decision")
        return self

    @property
    def line(self) -> tuple[Version, ...]:
        """The champion and those before it that a rollback leads to, the champion last.

        A promotion adds to the line; a rollback takes those off that came after the version it goes back to, or, if
        that one was taken off itself, puts it back on.
        """
        line: list[Version] = []
        for decision in self.decisions:
            line = _after(line, decision)
        return tuple(line)

    @property
    def promoted(self) -> frozenset[Version]:
        """All models that ever served."""
        return frozenset(d.champion for d in self.decisions if d.champion is not None)

    @property
    def withdrawn(self) -> frozenset[Version]:
        """Models that a rollback took out of service: no promotion brings them back, only another rollback."""
        return self.promoted - set(self.line)

    def with_decision(self, decision: Decision) -> "History":
        """Return the history with one more decision; raises ValueError where it does not follow."""
        return History(champion=decision.champion, decisions=(*self.decisions, decision))

    def settled(self, request: PromotionRequest) -> Decision | None:
        """Return the decision that has answered `request` already, or None.

        That is the one that made the challenger the champion, or one that refused it against the same champion.
        """
        for decision in reversed(self.decisions):
            if request.challenger == self.champion and decision.kind != "refused":
                return decision
            if decision.champion != self.champion:
                return None
            if decision.request == request:
                return decision
        return None

    def back_to(self, version: Version | None) -> Version:
        """Return the version that a rollback leads to: `version`, or the champion before this one.

        Raises UsageError where there is none, or where it serves already.
        """
        if self.champion is None:
            raise UsageError("no model has been promoted yet, so there is nothing to roll back to")
        if version is None:
            if len(self.line) == 1:
                raise UsageError(f"no champion was before {self.champion}, so there is nothing to roll back to")
            return self.line[-2]
        if version not in self.promoted:
            raise UsageError(f"--to {version}: no such version was promoted; there are {', '.join(self._versions())}")
        if version == self.champion:
            raise UsageError(f"--to {version}: it serves already")
        return version

    def served(self, moment: "Moment") -> Version:
        """Return the version that served at a moment; raises UsageError where none did."""
        before = [decision for decision in self.decisions if decision.at <= moment.at]
        if not before or before[-1].champion is None:
            first = next((d for d in self.decisions if d.champion is not None), None)
            since = f"the first was promoted at {utc(first.at)}" if first else "none has been promoted yet"
            raise UsageError(f"--as-of {moment.name}: no model served then; {since}")
        return before[-1].champion

    def latest_f1(self, version: Version | None) -> tuple[Estimate, Decision] | None:
        """Return the last macro F1 of a version, with the decision for which it was computed."""
        for number in reversed(range(len(self.decisions))):
            decision = self.decisions[number]
            if decision.comparison is None or decision.request is None:
                continue
            before = self.decisions[number - 1].champion if number else None
            sides = ((decision.request.challenger, decision.comparison.challenger_f1),
                     (before, decision.comparison.champion_f1))  # fmt: skip
            for side, f1 in sides:
                if side == version and f1 is not None:
                    return f1, decision
        return None

    def standing(self) -> str:
        """Say which model serves, since when, and its latest macro F1."""
        if self.champion is None:
            return "none, no model has been promoted"
        since = next(d for d in reversed(self.decisions) if d.kind != "refused")
        name = next(d.request.model for d in self.decisions if d.request and d.subject == self.champion)
        text = f"{self.champion} ({name}) since {utc(since.at)}"
        latest = self.latest_f1(self.champion)
        return text if latest is None else f"{text}, macro F1 {latest[0]} at {utc(latest[1].at)}"

    def _versions(self) -> list[Version]:
        """Return all that ever served, in the order in which they came."""
        return list(dict.fromkeys(d.champion for d in self.decisions if d.champion is not None))


def _after(line: Sequence[Version], decision: Decision) -> list[Version]:
    """Return the line after one more decision."""
    version = decision.champion
    if version is None or decision.kind == "refused":
        return list(line)
    if decision.kind == "rolled back" and version in line:
        return list(line[: line.index(version) + 1])
    return [*(other for other in line if other != version), version]


@dataclass(frozen=True)
class Moment:
    """A time to look back to: `name` is its spelling in the name of a file."""

    name: str
    at: datetime

    @classmethod
    def of(cls, text: str, now: datetime) -> "Moment":
        """Read a date, which means its end, or a date and time; UTC unless it says otherwise.

        Raises UsageError where it is neither, or lies in the future: a date that has not begun, a time after `now`.
        """
        try:
            begin = datetime.fromisoformat(text)
        except ValueError:
            raise UsageError(
                f"--as-of {text}: write a date (2026-01-31) or a time (2026-01-31T12:00), in UTC"
            ) from None
        begin = begin.astimezone(UTC) if begin.tzinfo else begin.replace(tzinfo=UTC)
        if begin > now:
            raise UsageError(f"--as-of {text} lies in the future; which model serves then is not known")
        with suppress(ValueError):
            day = date.fromisoformat(text)
            return cls(day.isoformat(), datetime.combine(day, time.max, UTC))
        return cls(f"{begin:%Y-%m-%dT%H%M%SZ}", begin)


def utc(moment: datetime) -> str:
    """Return a moment as people read it."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
