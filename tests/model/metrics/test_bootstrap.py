"""Intervals: known values by hand, widths that theory gives, and the same numbers every time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from model.metrics import bootstrap
from model.metrics.bootstrap import Answers, gain, macro_f1


def answers(true: list[int] | NDArray[np.int64], predicted: list[int] | NDArray[np.int64],
            speaker: list[int] | NDArray[np.int64] | None = None) -> Answers:  # fmt: skip
    speakers = np.arange(len(true)) if speaker is None else np.array(speaker)
    return Answers(np.array(true), np.array(predicted), speakers)


def right_at(rate: float, count: int, seed: int, speaker: NDArray[np.int64] | None = None) -> Answers:
    """Two languages, each answer right with probability `rate`; one draw a speaker, where they are given."""
    rng = np.random.default_rng(seed)
    speakers = np.arange(count) if speaker is None else speaker
    true = speakers % 2
    right = (rng.random(speakers.max() + 1) < rate)[speakers]
    return Answers(true, np.where(right, true, 1 - true), speakers)


def test_a_value_computed_by_hand() -> None:
    # de: 2 of 3 right, none taken for it; en: 1 right, one taken for it; fr: taken for a language of no store
    found = macro_f1(answers([0, 0, 0, 1, 2], [0, 0, 1, 1, 3]), seed=1)
    assert found.value == pytest.approx((4 / 5 + 2 / 3 + 0) / 3)


def test_a_language_that_nobody_speaks_is_not_in_the_mean() -> None:
    assert macro_f1(answers([0, 0, 1, 1], [0, 2, 1, 1]), seed=1).value == pytest.approx((2 / 3 + 1) / 2)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 5)), min_size=2, max_size=30))
def test_the_value_is_that_of_scikit_learn_and_lies_in_what_resampling_can_reach(
    rows: list[tuple[int, int, int]],
) -> None:
    true, predicted, speaker = np.array(rows).T
    found = macro_f1(answers(true, predicted, speaker), seed=1)
    expected = f1_score(true, predicted, labels=np.unique(true), average="macro", zero_division=0.0)
    assert found.value == pytest.approx(expected)
    if len(np.unique(speaker)) == 1:
        assert (found.low, found.high) == (None, None)
    else:
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low <= found.high <= 1


def test_the_interval_is_as_wide_as_theory_has_it() -> None:
    # of two balanced languages the macro F1 is the accuracy, nearly: its standard error is that of a proportion
    found = macro_f1(right_at(0.8, 400, seed=3), seed=1)
    assert found.low is not None
    assert found.high is not None
    half = 1.96 * np.sqrt(found.value * (1 - found.value) / 400)
    assert found.value - found.low == pytest.approx(half, rel=0.15)
    assert found.high - found.value == pytest.approx(half, rel=0.15)


def test_recordings_of_one_speaker_prove_no_more_than_one_recording() -> None:
    few = right_at(0.8, 40, seed=3)
    again = Answers(*(np.repeat(part, 25) for part in (few.true, few.predicted, few.speaker)))
    assert macro_f1(again, seed=1) == macro_f1(few, seed=1)
    unknown = Answers(again.true, again.predicted, np.arange(1000))
    widths = [e.high - e.low for e in (macro_f1(again, 1), macro_f1(unknown, 1)) if e.high and e.low]
    assert widths[0] == pytest.approx(5 * widths[1], rel=0.2)  # the root of 25


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    # balanced, symmetric: the true macro F1 is the rate
    found = [macro_f1(right_at(0.75, 60, seed=i), seed=i) for i in range(200)]
    covered = np.mean([e.low <= 0.75 <= e.high for e in found if e.low is not None and e.high is not None])
    assert 0.88 <= covered <= 0.99


def speakers_of_three_languages(each: int, seed: int) -> Answers:
    """Six recordings a speaker, of whom some are recognised always and some hardly ever, in the mean 0.6."""
    rng = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(3 * each), 6)
    true = speaker // each
    right = rng.random(len(speaker)) < rng.beta(2.4, 1.6, 3 * each)[speaker]
    return Answers(true, np.where(right, true, (true + rng.integers(1, 3, len(true))) % 3), speaker)


@pytest.mark.parametrize(("each", "least", "most"), [(1, 0.5, 0.75), (3, 0.8, 0.93), (30, 0.9, 0.99)])
def test_of_few_speakers_the_interval_is_too_narrow(each: int, least: float, most: float) -> None:
    # answers are symmetric in the languages, so the macro F1 of many speakers is their mean rate
    found = [macro_f1(speakers_of_three_languages(each, seed=i), seed=i) for i in range(300)]
    covered = np.mean([e.low <= 0.6 <= e.high for e in found if e.low is not None and e.high is not None])
    assert least < covered < most


def test_perfect_answers_have_an_interval_of_no_width() -> None:
    found = macro_f1(answers([0, 1, 2], [0, 1, 2]), seed=1)
    assert (found.value, found.low, found.high) == (1, 1, 1)


def test_a_gain_is_paired() -> None:
    # the champion is wrong on the same recordings and on every tenth of the others
    challenger = right_at(0.7, 200, seed=5)
    worse = np.where(np.arange(200) % 10 == 0, 1 - challenger.true, challenger.predicted)
    champion = Answers(challenger.true, worse, challenger.speaker)
    difference, share = gain(challenger, champion, 0.0, seed=1)
    one, other = macro_f1(challenger, 1), macro_f1(champion, 1)
    assert difference.value == pytest.approx(one.value - other.value)
    assert difference.low is not None
    assert difference.high is not None
    assert difference.low > 0
    assert share == 1
    # unpaired, the interval of the difference would be wider than each one's
    assert one.low is not None
    assert one.high is not None
    assert difference.high - difference.low < 0.8 * (one.high - one.low)


def test_the_same_answers_have_no_gain() -> None:
    same = right_at(0.7, 50, seed=5)
    difference, share = gain(same, same, 0.0, seed=1)
    assert (difference.value, difference.low, difference.high, share) == (0, 0, 0, 0)


def test_the_gain_over_a_fixed_value() -> None:
    difference, share = gain(right_at(0.7, 200, seed=5), 0.5, 0.0, seed=1)
    assert difference.value == pytest.approx(macro_f1(right_at(0.7, 200, seed=5), 1).value - 0.5)
    assert share == 1
    assert gain(right_at(0.7, 200, seed=5), 0.5, 0.5, seed=1)[1] == 0


def test_of_one_speaker_there_is_no_interval() -> None:
    alone = answers([0, 1, 1], [0, 1, 0], [4, 4, 4])
    difference, share = gain(alone, 0.5, 0.0, seed=1)
    assert (difference.low, difference.high, share) == (None, None, None)
    assert str(macro_f1(alone, 1)) == "0.667 (no interval)"


def test_numbers_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = right_at(0.7, 50, seed=5)
    first = macro_f1(sample, 1)
    assert macro_f1(sample, 1) == first
    assert macro_f1(sample, 2) != first
    monkeypatch.setattr(bootstrap, "MAX_DRAWN", 170)  # three resamples at a time
    assert macro_f1(sample, 1) == first
