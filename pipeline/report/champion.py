"""The report's section on the model in service: the decisions that led to it, and their intervals."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Any, Final

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pipeline.report.picture import INK, QUIET, Picture, picture
from pipeline.report.plots import WIDTH_IN

if TYPE_CHECKING:
    from model.metrics.estimate import Estimate
    from model.registry.history import Comparison, Decision, History

MIN_COMPARISONS: Final = 2
"""With fewer there is no picture."""
MAX_DRAWN: Final = 40
MAX_LISTED: Final = 10
MAX_DATES: Final = 10
MAX_LARGE_MARKERS: Final = 20

LOOKS: Final[Mapping[str, Mapping[str, Any]]] = {
    "promoted": {"color": INK, "marker": "o"},
    "refused": {"color": INK, "marker": "o", "markerfacecolor": "white"},
    "champion, same recordings": {"color": QUIET, "marker": "s"},
}


@dataclass(frozen=True)
class ChampionSection:
    """The champion since when, its latest macro F1 and the comparison that it is from, and the last decisions.

    `decisions` are the newest first; `earlier` counts those that are left out.
    """

    version: str | None
    since: str | None
    f1: "Estimate | None"
    comparison: "Comparison | None"
    decisions: Sequence["Decision"]
    earlier: int


def section(history: "History", add: Callable[[str, Picture], None]) -> ChampionSection | None:
    """Return the section, or None if there are no decisions; `add` keeps its picture by name."""
    if not history.decisions:
        return None
    drawn = history.decisions[-MAX_DRAWN:]
    if sum(decision.comparison is not None for decision in drawn) >= MIN_COMPARISONS:
        add("champions", champions(drawn))
    latest = history.latest_f1(history.champion)
    since = next((d for d in reversed(history.decisions) if d.kind != "refused"), None)
    return ChampionSection(
        version=history.champion,
        since=since.time if since else None,
        f1=latest[0] if latest else None,
        comparison=latest[1].comparison if latest else None,
        decisions=history.decisions[: -MAX_LISTED - 1 : -1],
        earlier=max(0, len(history.decisions) - MAX_LISTED),
    )


@picture
def champions(decisions: Sequence["Decision"]) -> Figure:
    """Draw the macro F1 of challengers and champions with their intervals, one column per decision."""
    figure = Figure(figsize=(WIDTH_IN, 2.9), layout="constrained")
    axes = figure.subplots()
    size = 5 if len(decisions) <= MAX_LARGE_MARKERS else 3.5
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
    axes.set(ylabel="macro F1 per recording", ylim=(max(0, lowest - 0.1), 1.02), xlim=(-0.6, len(decisions) - 0.4))
    axes.tick_params(axis="x", length=0)
    axes.grid(axis="y")
    keys = [Line2D([], [], label=label, **look) for label, look in LOOKS.items()]
    rollback = Line2D([], [], color=INK, linestyle=":", linewidth=1, label="rolled back")
    figure.legend(handles=[*keys, rollback], loc="outside upper right", ncols=len(keys) + 1)
    return figure


def _sides(decision: "Decision") -> Iterator[tuple["Estimate", float, Mapping[str, Any]]]:
    """Yield the estimates of a decision, each with its offset in the column and its look."""
    comparison = decision.comparison
    if comparison is None:
        return
    offset = 0.18 if comparison.champion_f1 is not None else 0.0
    if comparison.champion_f1 is not None:
        yield comparison.champion_f1, -offset, LOOKS["champion, same recordings"]
    if comparison.challenger_f1 is not None:
        yield comparison.challenger_f1, offset, LOOKS[decision.kind]
