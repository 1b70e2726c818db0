"""The history of decisions on which model is in service: it determines the champion at any time."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from typing import Any, Final, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from model.metrics.estimate import Estimate
from pipeline.errors import UsageError

Version = str
"""The digest of a model, see `bundle.version_of`."""

RENAMED: Final = {"question": "request", "judgement": "comparison"}
"""Fields of a decision in schema version 1, and their names now."""


class Comparison(BaseModel):
    """The comparison of a challenger with the champion or, if there was none, with chance; None if not computed.

    `better_in` is the fraction of resamples in which the gain is larger than the rule requires.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    promoted: bool
    reason: str
    challenger_f1: Estimate | None = None
    champion_f1: Estimate | None = None
    gain: Estimate | None = None
    better_in: float | None = None
    recordings: int | None = None
    speakers: int | None = None


class PromotionRequest(BaseModel):
    """The model `model` of a run, with version `challenger`, is to be promoted on a store by a rule."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    challenger: Version
    model: str
    store: dict[str, str]
    rule: dict[str, float]


class Decision(BaseModel):
    """One entry of the history; `champion` is the version in service after it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    at: AwareDatetime
    kind: Literal["promoted", "refused", "rolled back"]
    reason: str
    by: str
    champion: Version | None
    run_key: str | None = None
    request: PromotionRequest | None = None
    comparison: Comparison | None = None

    @property
    def time(self) -> str:
        """The time of the decision as text."""
        return utc(self.at)

    @property
    def subject(self) -> Version | None:
        """The version that the decision is about."""
        return self.request.challenger if self.request else self.champion


class History(BaseModel):
    """All decisions, oldest first; decisions are only added.

    `champion` repeats that of the last decision, for other readers of the file.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = 2
    champion: Version | None = None
    decisions: tuple[Decision, ...] = Field(default=())

    @model_validator(mode="before")
    @classmethod
    def _upgraded(cls, content: Any) -> Any:
        """Give the fields of schema version 1 their present names."""
        if not isinstance(content, dict) or content.get("schema_version") != 1:
            return content
        decisions = content.get("decisions", [])
        if not isinstance(decisions, list) or not all(isinstance(decision, dict) for decision in decisions):
            return content
        renamed = [{RENAMED.get(name, name): value for name, value in decision.items()} for decision in decisions]
        return {**content, "schema_version": 2, "decisions": renamed}

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
                raise ValueError(f"decision {number} ({decision.kind}) contradicts the decisions before it")
            line = _after(line, decision)
            ever.update(line)
        if self.champion != (line[-1] if line else None):
            raise ValueError(f"champion {self.champion} is not that of the last decision")
        return self

    @property
    def line(self) -> tuple[Version, ...]:
        """The champions that a rollback can restore, oldest first, and last the present champion.

        A promotion appends to the line. A rollback removes the versions after the one that it restores; a version that
        is not in the line any more is appended again.
        """
        line: list[Version] = []
        for decision in self.decisions:
            line = _after(line, decision)
        return tuple(line)

    @property
    def promoted(self) -> frozenset[Version]:
        """All versions that have ever been in service."""
        return frozenset(d.champion for d in self.decisions if d.champion is not None)

    @property
    def withdrawn(self) -> frozenset[Version]:
        """The versions that a rollback took out of service; only another rollback restores them."""
        return self.promoted - set(self.line)

    def with_decision(self, decision: Decision) -> "History":
        """Return the history with one more decision; raises ValueError if it contradicts the others."""
        return History(champion=decision.champion, decisions=(*self.decisions, decision))

    def settled(self, request: PromotionRequest) -> Decision | None:
        """Return the decision on the same request, or None if it has to be decided.

        It is the decision that made the challenger the champion, or one that refused it against the present champion.
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
        """Return the version that a rollback restores: `version`, or the previous champion.

        Raises UsageError if there is none, or if it is the champion already.
        """
        if self.champion is None:
            raise UsageError("no model has been promoted yet; there is nothing to roll back to")
        if version is None:
            if len(self.line) == 1:
                raise UsageError(f"{self.champion} is the first champion; there is nothing to roll back to")
            return self.line[-2]
        if version not in self.promoted:
            raise UsageError(f"--to {version}: never promoted; choose one of {', '.join(self._versions())}")
        if version == self.champion:
            raise UsageError(f"--to {version}: it is the champion already")
        return version

    def served(self, moment: "Moment") -> Version:
        """Return the version in service at a moment; raises UsageError if there was none."""
        before = [decision for decision in self.decisions if decision.at <= moment.at]
        if not before or before[-1].champion is None:
            first = next((d for d in self.decisions if d.champion is not None), None)
            since = f"the first was promoted at {utc(first.at)}" if first else "none has been promoted yet"
            raise UsageError(f"--as-of {moment.name}: no model was in service then; {since}")
        return before[-1].champion

    def latest_f1(self, version: Version | None) -> tuple[Estimate, Decision] | None:
        """Return the latest macro F1 of a version, and the decision that it was computed for."""
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
        """Return a line on the champion: its version, since when it is in service, and its latest macro F1."""
        if self.champion is None:
            return "none; no model has been promoted"
        since = next(d for d in reversed(self.decisions) if d.kind != "refused")
        name = next(d.request.model for d in self.decisions if d.request and d.subject == self.champion)
        text = f"{self.champion} ({name}) since {utc(since.at)}"
        latest = self.latest_f1(self.champion)
        return text if latest is None else f"{text}, macro F1 {latest[0]} at {utc(latest[1].at)}"

    def _versions(self) -> list[Version]:
        """Return all versions that have ever been in service, in the order of their first promotion."""
        return list(dict.fromkeys(d.champion for d in self.decisions if d.champion is not None))


def _after(line: Sequence[Version], decision: Decision) -> list[Version]:
    """Return the line of champions after one more decision."""
    version = decision.champion
    if version is None or decision.kind == "refused":
        return list(line)
    if decision.kind == "rolled back" and version in line:
        return list(line[: line.index(version) + 1])
    return [*(other for other in line if other != version), version]


@dataclass(frozen=True)
class Moment:
    """A time in the past; `name` is its spelling in the name of a file."""

    name: str
    at: datetime

    @classmethod
    def of(cls, text: str, now: datetime) -> "Moment":
        """Parse a date, which stands for its end, or a date and time; in UTC unless it has an offset.

        Raises UsageError for other text, and for the future: a date that has not begun, a time after `now`.
        """
        try:
            begin = datetime.fromisoformat(text)
        except ValueError:
            raise UsageError(
                f"--as-of {text}: write a date (2026-01-31) or a time (2026-01-31T12:00), in UTC"
            ) from None
        begin = begin.astimezone(UTC) if begin.tzinfo else begin.replace(tzinfo=UTC)
        if begin > now:
            raise UsageError(f"--as-of {text} is in the future")
        with suppress(ValueError):
            day = date.fromisoformat(text)
            return cls(day.isoformat(), datetime.combine(day, time.max, UTC))
        return cls(f"{begin:%Y-%m-%dT%H%M%SZ}", begin)


def utc(moment: datetime) -> str:
    """Return a moment as text, in UTC."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
