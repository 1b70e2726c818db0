"""The section on the model that serves: its numbers in the picture, the page and on the terminal."""

import io
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from model.metrics.estimate import Estimate
from model.registry import registry
from model.registry.history import Comparison, Decision, History, PromotionRequest
from pipeline.durable_files import write_atomically
from pipeline.outputs import OutputFolder
from pipeline.report import status
from pipeline.report.champion import MAX_DRAWN, MAX_LISTED, champions, section
from pipeline.report.picture import Picture
from pipeline.run_record import RunRecord

START = datetime(2026, 1, 1, 3, tzinfo=UTC)


def judged(number: int, f1: float, champion_f1: float | None, promoted: bool, champion: str | None) -> Decision:
    def estimate(value: float) -> Estimate:
        return Estimate(value=value, low=value - 0.1, high=value + 0.05)

    comparison = Comparison(
        promoted=promoted, reason=f"because of {number}", challenger_f1=estimate(f1),
        champion_f1=None if champion_f1 is None else estimate(champion_f1),
        gain=estimate(f1 - (champion_f1 or 0.5)), better_in=0.5, recordings=36, speakers=9,
    )  # fmt: skip
    version = f"version{number}"
    return Decision(
        at=START + timedelta(days=number), kind="promoted" if promoted else "refused", reason=comparison.reason,
        by="ana", champion=version if promoted else champion, comparison=comparison,
        request=PromotionRequest(challenger=version, model="lstm", store={}, rule={}),
    )  # fmt: skip


@pytest.fixture
def history() -> History:
    """Promoted, refused, promoted, rolled back, each a day later."""
    found = History()
    for decision in (judged(0, 0.6, None, True, None), judged(1, 0.55, 0.62, False, "version0"),
                     judged(2, 0.8, 0.61, True, "version0")):  # fmt: skip
        found = found.with_decision(decision)
    back = Decision(
        at=START + timedelta(days=3), kind="rolled back", reason="from <b> to a", by="ben", champion="version0"
    )
    return found.with_decision(back)


def test_without_decisions_there_is_no_section() -> None:
    assert section(History(), lambda *_: pytest.fail("there is nothing to draw")) is None


def test_the_section_says_what_serves_and_why(history: History) -> None:
    pictures: dict[str, Picture] = {}
    found = section(history, pictures.__setitem__)
    assert found is not None
    assert (found.version, found.since, found.earlier) == ("version0", "2026-01-04 03:00 UTC", 0)
    assert str(found.f1) == "0.610 (0.510 to 0.660)"  # as the last comparison had it
    assert [(row.kind, row.subject, row.by) for row in found.decisions] == [
        ("rolled back", "version0", "ben"), ("promoted", "version2", "ana"), ("refused", "version1", "ana"),
        ("promoted", "version0", "ana"),
    ]  # fmt: skip
    assert pictures["champions"].png.startswith(b"\x89PNG")


def test_a_single_comparison_has_no_picture() -> None:
    history = History().with_decision(judged(0, 0.6, None, True, None))
    found = section(history, lambda *_: pytest.fail("a single point shows nothing"))
    assert found is not None
    assert (found.version, len(found.decisions)) == ("version0", 1)


def test_the_picture_has_every_estimate_in_its_column(history: History) -> None:
    figure = champions.__wrapped__(history.decisions)  # type: ignore[attr-defined]
    (axes,) = figure.axes
    lines = [line for line in axes.lines if line.get_marker() in ("o", "s")]
    points = [(line.get_marker(), line.get_markerfacecolor(), float(line.get_ydata()[0])) for line in lines]
    dark, grey = "#1f2d3d", "#93a1b0"
    assert points == [("o", dark, 0.6), ("s", grey, 0.62), ("o", "white", 0.55), ("s", grey, 0.61), ("o", dark, 0.8)]
    assert [round(float(line.get_xdata()[0])) for line in lines] == [0, 1, 1, 2, 2]
    intervals = [path.vertices[:, 1].tolist() for group in axes.collections for path in group.get_paths()]
    assert intervals == [pytest.approx([y - 0.1, y + 0.05]) for _, _, y in points]
    assert [float(line.get_xdata()[0]) for line in axes.lines if line.get_linestyle() == ":"] == [3]
    low, high = axes.get_ylim()
    assert low < 0.45
    assert high > 1


def test_a_long_history_is_cut() -> None:
    decisions = [judged(0, 0.6, None, True, None)]
    decisions += [judged(number, 0.5, 0.6, False, "version0") for number in range(1, 60)]
    found = section(History(champion="version0", decisions=tuple(decisions)), lambda *_: None)
    assert found is not None
    assert (len(found.decisions), found.earlier) == (MAX_LISTED, 60 - MAX_LISTED)
    assert found.decisions[0].subject == "version59"
    assert champions(decisions[-MAX_DRAWN:]).png.startswith(b"\x89PNG")


def test_without_intervals_or_judgements_there_are_points_or_nothing() -> None:
    alone = Estimate(value=0.5, low=None, high=None)
    first = judged(0, 0.6, None, True, None)
    assert first.comparison is not None
    decision = first.model_copy(update={"comparison": first.comparison.model_copy(update={"challenger_f1": alone})})
    assert champions([decision]).png.startswith(b"\x89PNG")
    unjudged = judged(1, 0.5, None, False, "version0").model_copy(
        update={"comparison": Comparison(promoted=False, reason="")}
    )
    assert champions([first, unjudged]).png.startswith(b"\x89PNG")


def test_status_names_the_missing_files_of_a_stage(tmp_path: Path) -> None:
    output = OutputFolder.at(str(tmp_path))
    (output.root / "there").write_bytes(b"")
    record = RunRecord(output)
    record.finish("report", "key", [output.root / name for name in ("there", "never written")])
    record.finish("train/lstm", "key", [output.root / "there"])
    text = io.StringIO()
    status.show(output, History(), Console(file=text, width=200))
    assert "missing" not in text.getvalue()
    (output.root / "there").unlink()
    status.show(output, History(), Console(file=text, width=200))
    assert text.getvalue().count("run it again: there missing") == 2


def test_status_shows_champion_and_decisions(history: History, tmp_path: Path) -> None:
    output = OutputFolder.at(str(tmp_path))
    write_atomically(output.run, json.dumps({"stages": {}}).encode())
    console = Console(file=io.StringIO(), width=80)
    status.show(output, registry.read(output), console)
    assert "champion" not in console.file.getvalue()  # type: ignore[attr-defined]
    write_atomically(output.decisions, history.model_dump_json().encode())
    status.show(output, registry.read(output), console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert (
        "champion    version0 (lstm) since 2026-01-04 03:00 UTC, "
        "macro F1 0.610 (0.510 to 0.660) at 2026-01-03 03:00 UTC"
    ) in lines
    assert [line.split()[2:4] for line in lines[-4:]] == [
        ["rolled", "back"], ["promoted", "version2"], ["refused", "version1"], ["promoted", "version0"],
    ]  # fmt: skip
    assert lines[-3].split("  ")[-2:] == ["0.800 (0.700 to 0.850)", "+0.190"]
