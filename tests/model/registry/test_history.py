"""The history of decisions: whatever happens, exactly one model serves, and it is the one that the history names."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from model.metrics.estimate import Estimate
from model.registry.history import Comparison, Decision, History, Moment, PromotionRequest
from pipeline.errors import UsageError

START = datetime(2026, 1, 1, 12, tzinfo=UTC)
STORE = {"config_hash": "c", "manifest_digest": "m"}
RULE = {"min_gain": 0.0, "confidence": 0.9}


def request(challenger: str, store: dict[str, str] | None = None) -> PromotionRequest:
    return PromotionRequest(challenger=challenger, model="lstm", store=store or STORE, rule=RULE)


def after(history: History, kind: str, version: str) -> History:
    """The history after one more decision, a day later."""
    asked = None if kind == "rolled back" else request(version)
    number = len(history.decisions)
    decision = Decision.model_validate({
        "at": START + timedelta(days=number), "kind": kind, "reason": f"reason {number}", "by": "somebody",
        "champion": history.champion if kind == "refused" else version, "request": asked,
        "comparison": None if asked is None else Comparison(promoted=kind == "promoted", reason="r"),
    })  # fmt: skip
    return history.with_decision(decision)


def histories(*steps: str) -> History:
    """ "+a" promotes a, "-b" refuses b, "<" rolls back, "<c" rolls back to c."""
    history = History()
    for step in steps:
        if step[0] == "<":
            history = after(history, "rolled back", history.back_to(step[1:] or None))
        else:
            history = after(history, {"+": "promoted", "-": "refused"}[step[0]], step[1:])
    return history


@given(st.lists(st.tuples(st.sampled_from("+-<"), st.sampled_from(["", "a", "b", "c", "d"])), max_size=20))
def test_exactly_one_model_serves_and_the_history_names_it(steps: list[tuple[str, str]]) -> None:
    history = History()
    line: list[str] = []  # told again, by stacks alone
    out: set[str] = set()
    for action, version in steps:
        if action == "<":
            ever = {*line, *out}
            possible = (len(line) > 1) if not version else (version in ever and version != line[-1])
            if not possible:
                with pytest.raises(UsageError):
                    history.back_to(version or None)
                continue
            target = history.back_to(version or None)
            assert target == (version or line[-2])
            if target in line:
                while line[-1] != target:
                    out.add(line.pop())
            else:
                out.remove(target)
                line.append(target)
            history = after(history, "rolled back", target)
        elif action == "-" and version:
            history = after(history, "refused", version)
        elif action == "+" and version and version != history.champion:
            line = [other for other in line if other != version] + [version]
            out.discard(version)
            history = after(history, "promoted", version)
        assert history.line == tuple(line)
        assert history.withdrawn == out
        assert history.champion == (line[-1] if line else None)
        assert not history.withdrawn & {history.champion}
        if history.champion is not None:
            assert history.served(Moment("now", START + timedelta(days=99))) == history.champion
        assert History.model_validate_json(history.model_dump_json()) == history
        # a history is only ever added to: each beginning of it is one
        for end in range(len(history.decisions)):
            begun = history.decisions[:end]
            History(champion=begun[-1].champion if begun else None, decisions=begun)


@pytest.mark.parametrize(("steps", "champion", "withdrawn"), [
    (["+a", "+b", "<"], "a", {"b"}),
    (["+a", "+b", "+c", "<", "<"], "a", {"b", "c"}),
    (["+a", "+b", "+c", "<a"], "a", {"b", "c"}),
    (["+a", "+b", "<", "<b"], "b", set()),
    (["+a", "+b", "<", "<b", "<"], "a", {"b"}),
    (["+a", "+b", "<", "+c", "<"], "a", {"b", "c"}),
    (["+a", "+b", "+a", "<"], "b", {"a"}),  # a is not below itself
    (["+a", "-b", "+c", "-a", "<"], "a", {"c"}),
])  # fmt: skip
def test_rollbacks_lead_back_along_the_line(steps: list[str], champion: str, withdrawn: set[str]) -> None:
    history = histories(*steps)
    assert (history.champion, history.withdrawn) == (champion, withdrawn)


@pytest.mark.parametrize(("steps", "to", "told"), [
    ([], None, "no model has been promoted yet"),
    (["-a"], None, "no model has been promoted yet"),
    (["+a"], None, "a is the first champion; there is nothing to roll back to"),
    (["+a", "+b", "<"], None, "a is the first champion"),
    (["+a", "-b"], "b", "--to b: never promoted; choose one of a"),
    (["+a", "+b"], "b", "--to b: it is the champion already"),
])  # fmt: skip
def test_where_no_rollback_leads(steps: list[str], to: str | None, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        histories(*steps).back_to(to)


def test_what_is_decided_is_settled_until_something_changes() -> None:
    assert histories().settled(request("a")) is None
    promoted = histories("+a")
    assert promoted.settled(request("a")) == promoted.decisions[0]
    assert (
        promoted.settled(request("a", {"config_hash": "other"})) == promoted.decisions[0]
    )  # it serves, whatever the store
    refused = histories("+a", "-b", "-c")
    assert refused.settled(request("b")) == refused.decisions[1]
    assert refused.settled(request("b", {"config_hash": "other"})) is None
    assert refused.settled(request("d")) is None
    assert histories("+a", "-b", "+c").settled(request("b")) is None  # another champion
    assert histories("-a").settled(request("a")) is not None
    rolled = histories("+a", "+b", "<")
    assert rolled.settled(request("b")) is None
    assert rolled.settled(request("a")) == rolled.decisions[2]


def test_what_served_at_a_time() -> None:
    history = histories("-a", "+b", "-c", "+d", "<")  # a day each, at noon, from 1 January
    served = {text: history.served(Moment.of(text, START + timedelta(days=9)))
              for text in ("2026-01-02", "2026-01-03", "2026-01-04", "2026-01-05", "2026-01-09")}  # fmt: skip
    assert list(served.values()) == ["b", "b", "d", "b", "b"]
    for text in ("2025-12-31", "2026-01-01", "2026-01-02T11:59:59"):
        with pytest.raises(
            UsageError, match=r"--as-of .*: no model was in service then; the first was promoted at 2026-01-02 12:00"
        ):
            history.served(Moment.of(text, START + timedelta(days=9)))
    assert history.served(Moment.of("2026-01-02T12:00", START + timedelta(days=9))) == "b"
    with pytest.raises(UsageError, match="none has been promoted yet"):
        histories("-a").served(Moment.of("2026-01-01", START))


@pytest.mark.parametrize(("text", "name", "at"), [
    ("2026-01-01", "2026-01-01", datetime(2026, 1, 1, 23, 59, 59, 999999, UTC)),
    ("20260101", "2026-01-01", datetime(2026, 1, 1, 23, 59, 59, 999999, UTC)),
    ("2026-01-01T06:30", "2026-01-01T063000Z", datetime(2026, 1, 1, 6, 30, tzinfo=UTC)),
    ("2026-01-01T06:30:05Z", "2026-01-01T063005Z", datetime(2026, 1, 1, 6, 30, 5, tzinfo=UTC)),
    ("2026-01-01T06:30+02:00", "2026-01-01T043000Z", datetime(2026, 1, 1, 4, 30, tzinfo=UTC)),
])  # fmt: skip
def test_moments_are_read_in_utc(text: str, name: str, at: datetime) -> None:
    assert Moment.of(text, START) == Moment(name, at)


@pytest.mark.parametrize(("text", "told"), [
    ("yesterday", "write a date"), ("2026-13-01", "write a date"), ("", "write a date"),
    ("2026-01-02", "is in the future"), ("2026-01-01T12:00:01", "is in the future"),
])  # fmt: skip
def test_what_is_no_moment_of_the_past_is_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=f"--as-of {text}.*{told}"):
        Moment.of(text, START)


@pytest.mark.parametrize("change", [
    {"champion": "b"}, {"champion": None}, {"schema_version": 3}, {"more": 1}, {"decisions": ()},
])  # fmt: skip
def test_a_history_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    history = histories("+a", "-b")
    with pytest.raises(ValidationError):
        History.model_validate({**history.model_dump(), **change})


@pytest.mark.parametrize(("steps", "kind", "version"), [
    ((), "rolled back", "a"), (("+a",), "rolled back", "b"), (("+a",), "promoted", "a"), (("+a",), "rolled back", "a"),
])  # fmt: skip
def test_a_decision_that_does_not_follow_is_refused(steps: tuple[str, ...], kind: str, version: str) -> None:
    with pytest.raises(ValueError, match=f"decision .* \\({kind}\\) contradicts the"):
        after(histories(*steps), kind, version)


def test_the_latest_f1_of_a_version_is_of_either_side() -> None:
    def judged(history: History, kind: str, version: str, f1: float, other: float | None) -> History:
        decision = after(history, kind, version).decisions[-1]
        sides = {name: None if value is None else Estimate(value=value, low=None, high=None)
                 for name, value in (("challenger_f1", f1), ("champion_f1", other))}  # fmt: skip
        comparison = Comparison(promoted=kind == "promoted", reason="r", **sides)
        return history.with_decision(decision.model_copy(update={"comparison": comparison}))

    history = judged(History(), "promoted", "a", 0.5, None)
    history = judged(history, "refused", "b", 0.4, 0.55)
    history = judged(history, "promoted", "c", 0.7, 0.6)
    found = {version: history.latest_f1(version) for version in "abcd"}
    values = {version: f1[0].value for version, f1 in found.items() if f1 is not None}
    assert values == {"a": 0.6, "b": 0.4, "c": 0.7}
    assert found["d"] is None
