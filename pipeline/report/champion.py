"""The report's section on the model that serves: how it came to that, and how sure its macro F1 is."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.report.plots import INK, QUIET, WIDTH_IN, picture

if TYPE_CHECKING:
    from model.metrics.estimate import Estimate
    from model.registry.history import Decision, History

MAX_DRAWN: Final = 40
MAX_LISTED: Final = 10
MAX_DATES: Final = 10
MAX_ROOMY: Final = 20

LOOKS: Final[Mapping[str, Mapping[str, Any]]] = {
    "promoted": {"color": INK, "marker": "o"},
    "refused": {"color": INK, "marker": "o", "markerfacecolor": "white"},
    "champion, same recordings": {"color": QUIET, "marker": "s"},
}


def standing(history: "History", add: Callable[[str, bytes], None]) -> dict[str, Any] | None:
    """Return what the page says of the champion and the last decisions, with their picture; None where there are none.

    `add` keeps a picture by its name.
    """
    if not history.decisions:
        return None
    drawn = history.decisions[-MAX_DRAWN:]
    if any(decision.comparison and decision.comparison.challenger_f1 for decision in drawn):
        add("champions", champions(drawn))
    latest = history.latest_f1(history.champion)
    since = next((d for d in reversed(history.decisions) if d.kind != "refused"), None)
    return {
        "champion": history.champion,
        "since": since.time if since else None,
        "f1": latest and latest[0],
        "of": latest and latest[1].comparison,
        "rows": [_row(decision) for decision in history.decisions[: -MAX_LISTED - 1 : -1]],
        "earlier": max(0, len(history.decisions) - MAX_LISTED),
    }


def _row(decision: "Decision") -> dict[str, Any]:
    comparison = decision.comparison
    return {
        "at": decision.time,
        "kind": decision.kind,
        "version": decision.subject,
        "model": decision.request.model if decision.request else "",
        "f1": comparison and comparison.challenger_f1,
        "gain": comparison and comparison.gain,
        "reason": decision.reason,
        "by": decision.by,
    }


@picture
def champions(decisions: Sequence["Decision"]) -> Figure:
    """Draw the macro F1 of challengers and champions with their intervals, a column for each decision."""
    figure = Figure(figsize=(WIDTH_IN, 2.9), layout="constrained")
    axes = figure.subplots()
    size = 5 if len(decisions) <= MAX_ROOMY else 3.5
    lowest = 1.0
    for place, decision in enumerate(decisions):
        if decision.kind == "rolled back":
            axes.axvline(place, color=INK, linestyle=":", linewidth=1)
        for estimate, offset, look in _sides(decision):
            if estimate.low is not None and estimate.high is not None:
                axes.vlines(place + offset, estimate.low, estimate.high, color=look["color"], linewidth=1.4)
            axes.plot([place + offset], [estimate.value], linestyle="none", markersize=size, **look)
            lowest = min(lowest, estimate.value if estimate.low is None else estimate.low)
    places = range(0, len(decisions), -(-len(decisions) // MAX_DATES))
    axes.set_xticks(places, [f"{decisions[place].at.astimezone(UTC):%d %b\n%H:%M}" for place in places])
    axes.set(ylabel="macro F1 a recording", ylim=(max(0, lowest - 0.1), 1.02), xlim=(-0.6, len(decisions) - 0.4))
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    keys = [Line2D([], [], label=label, **look) for label, look in LOOKS.items()]
    rollback = Line2D([], [], color=INK, linestyle=":", linewidth=1, label="rolled back")
    figure.legend(handles=[*keys, rollback], loc="outside upper right", ncols=len(keys) + 1)
    return figure


def _sides(decision: "Decision") -> Iterator[tuple["Estimate", float, Mapping[str, Any]]]:
    """Yield the estimates of a decision, each with its place in the column and its look."""
    comparison = decision.comparison
    if comparison is None:
        return
    apart = 0.18 if comparison.champion_f1 is not None else 0.0
    if comparison.champion_f1 is not None:
        yield comparison.champion_f1, -apart, LOOKS["champion, same recordings"]
    if comparison.challenger_f1 is not None:
        yield comparison.challenger_f1, apart, LOOKS[decision.kind]
