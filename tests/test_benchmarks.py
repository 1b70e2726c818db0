"""What the benchmarks compute from their figures; the figures themselves are asserted nowhere."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import corpus
from tests.benchmarks.measure import Contender, Measured, alternate, turns
from tests.benchmarks.report import Row, Table, at_least, at_most, cells, comparison, merge, number, same_within


def test_contenders_take_turns_and_slow_ones_have_fewer() -> None:
    assert list(turns([3, 1, 2])) == [0, 1, 2, 0, 2, 0]
    assert list(turns([])) == []


@contextmanager
def counting(start: int) -> Iterator[Callable[[], float]]:
    numbers = iter(range(start, start + 10))
    yield lambda: float(next(numbers))


def test_each_contender_keeps_its_state_in_a_process_of_its_own() -> None:
    contenders = [Contender("a", counting, {"start": 1}), Contender("b", counting, {"start": 5}, rounds=2)]
    found = alternate(contenders, 3)
    assert {name: measured.values for name, measured in found.items()} == {"a": (1, 2, 3), "b": (5, 6)}
    assert all(measured.children_bytes == () for measured in found.values())


@pytest.mark.parametrize(("smaller", "ratio", "met"), [(False, 0.5, False), (True, 2.0, True)])
def test_a_ratio_above_one_is_better_whatever_the_unit(smaller: bool, ratio: float, met: bool) -> None:
    measured = {"ours": Measured((3, 1, 2), 0, ()), "peer": Measured((4, 9, 3), 0, ()), "free": Measured((1,), 0, ())}
    ours, peer, free = comparison("ms", measured, {"peer": 2.0}, smaller_is_better=smaller)
    assert (ours.value, ours.ratio, ours.met) == (2, None, None)
    assert (peer.value, peer.ratio, peer.bar, peer.met) == (4, ratio, "≥ 2 ×", met)
    assert free.met is None


def test_bars_without_a_peer() -> None:
    assert [at_most("a", "s", [19, 21, 20], 20).met, at_most("a", "s", [20.1], 20).met] == [True, False]
    assert [at_least("a", "/s", [5000], 5000).met, at_least("a", "/s", [4999], 5000).met] == [True, False]
    assert [same_within("a", "MiB", value, 100, 0.1).met for value in (89, 91, 109, 111)] == [
        False, True, True, False,
    ]  # fmt: skip


def test_a_row_as_text() -> None:
    row = Row("peer", "ms", (4.0, 1234.0, 0.5), 2.0, "≥ 3 ×", False)
    assert cells(row) == ("peer", "4.00 ms", "0.500 – 1,234", "3", "2.00 ×", "≥ 3 ×", "**no**")
    assert [number(value) for value in (0, 0.0123, 9.876, 98.76, 987.6)] == ["0", "0.012", "9.88", "98.8", "988"]


def test_groups_are_merged_and_another_machine_begins_anew(tmp_path: Path) -> None:
    table = Table("Speed", "As measured.", (Row("ours", "ms", (1.0,)),))
    merge(tmp_path, "scan", "Scan", "--rounds 1", [table])
    merge(tmp_path, "kernel", "Kernel", "--rounds 2", [table])
    page = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert page.index("## Kernel") < page.index("## Scan")
    assert "| ours | 1.00 ms |" in page

    results = json.loads((tmp_path / "benchmarks.json").read_text(encoding="utf-8"))
    results["machine"]["processor"] = "another"
    (tmp_path / "benchmarks.json").write_text(json.dumps(results), encoding="utf-8")
    merge(tmp_path, "kernel", "Kernel", "--rounds 2", [table])
    assert list(json.loads((tmp_path / "benchmarks.json").read_text(encoding="utf-8"))["groups"]) == ["kernel"]


def test_the_corpus_is_as_long_as_asked_and_the_same_each_time() -> None:
    recordings = list(corpus.recordings(2))
    assert recordings == list(corpus.recordings(2))
    seconds = [recording.seconds for recording in recordings]
    assert seconds[0] == 600
    assert all(2 <= each <= 30 for each in seconds[1:])
    assert 7200 <= sum(seconds) <= 7230
    assert {recording.language for recording in recordings} == set(corpus.TEXTS)


def test_a_recording_without_espeak_is_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    samples, rate_hz = corpus.speech(corpus.Recording(1, "de", "m1", 2.5))
    assert (len(samples), rate_hz, samples.dtype) == (40_000, 16_000, np.float32)
