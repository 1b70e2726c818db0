"""The rule of promotion: verdicts whose reasons can be counted on fingers."""

import numpy as np
import pytest
from numpy.typing import NDArray

from model.config import PromotionConfig
from model.metrics.bootstrap import Answers
from model.registry.history import Comparison
from model.registry.promotion import Champion, decide

LABELS = ("de", "en", "fr")
TRUE = np.tile([0, 1, 2], 20)
RULE = PromotionConfig()


def _answers(wrong: int, speaker: NDArray[np.int64] | None = None, true: NDArray[np.int64] = TRUE) -> Answers:
    """The first `wrong` recordings are taken for the next language."""
    predicted = np.where(np.arange(len(true)) < wrong, (true + 1) % 3, true)
    return Answers(true, predicted, np.arange(len(true)) if speaker is None else speaker)


def _decide(
    wrong: int, champion: int | Champion | None, rule: PromotionConfig = RULE, obstacle: str | None = None,
    speaker: NDArray[np.int64] | None = None,
) -> Comparison:  # fmt: skip
    other = Champion(_answers(champion, speaker)) if isinstance(champion, int) else champion
    return decide(_answers(wrong, speaker), other, rule, 1, LABELS, obstacle)


def test_a_better_model_is_promoted_with_its_numbers() -> None:
    verdict = _decide(3, 30)
    assert verdict.promoted
    assert (verdict.recordings, verdict.speakers) == (60, 60)
    assert verdict.challenger_f1 is not None
    assert verdict.champion_f1 is not None
    assert verdict.gain is not None
    assert verdict.gain.value == verdict.challenger_f1.value - verdict.champion_f1.value == pytest.approx(0.45)
    assert verdict.better_in == 1
    assert verdict.reason.startswith(
        f"macro F1 {verdict.challenger_f1}, against {verdict.champion_f1} of the champion; "
    )
    assert "gain +0.450 (+0.3" in verdict.reason
    assert verdict.reason.endswith("above 0 in 100.0% of resamples, promotion.confidence requires 90.0%")


@pytest.mark.parametrize("wrong", [30, 33])
def test_a_model_that_is_not_better_is_refused(wrong: int) -> None:
    verdict = _decide(wrong, 30)
    assert not verdict.promoted
    assert verdict.reason.endswith("not above promotion.min_gain 0")


def test_a_gain_that_resampling_doubts_is_refused_unless_no_proof_is_asked_for() -> None:
    # one recording of 60 more is right: in (59/60)^60 = 36 % of resamples it is not drawn
    verdict = _decide(29, 30)
    assert not verdict.promoted
    assert verdict.better_in == pytest.approx(1 - (59 / 60) ** 60, abs=0.03)
    assert _decide(29, 30, PromotionConfig(confidence=0)).promoted
    assert _decide(29, 30, PromotionConfig(confidence=0.6)).promoted
    assert not _decide(29, 30, PromotionConfig(confidence=0.7)).promoted


def test_the_least_gain_is_asked_of_the_value_and_of_the_resamples() -> None:
    assert not _decide(3, 30, PromotionConfig(min_gain=0.46)).promoted
    assert _decide(3, 30, PromotionConfig(min_gain=0.44, confidence=0)).promoted
    doubted = _decide(3, 30, PromotionConfig(min_gain=0.44))
    assert not doubted.promoted
    assert "above 0.44 in" in doubted.reason
    assert _decide(3, 30, PromotionConfig(min_gain=0.3)).promoted


def test_the_first_model_has_to_beat_chance() -> None:
    verdict = _decide(3, None)
    assert verdict.promoted
    assert verdict.champion_f1 is None
    assert verdict.challenger_f1 is not None
    assert verdict.gain is not None
    assert verdict.gain.value == pytest.approx(verdict.challenger_f1.value - 1 / 3)
    assert "against chance 0.333" in verdict.reason
    assert not _decide(45, None).promoted


def test_always_naming_one_language_is_never_promoted() -> None:
    true = np.repeat([0, 1, 2], [58, 1, 1])
    constant = Answers(true, np.zeros(60, np.int64), np.arange(60))
    verdict = decide(constant, None, PromotionConfig(confidence=0), 1, LABELS)
    assert not verdict.promoted
    one = Answers(np.zeros(9, np.int64), np.zeros(9, np.int64), np.arange(9))
    # a test split of one language proves nothing: perfect is chance
    assert not decide(one, None, PromotionConfig(confidence=0), 1, LABELS).promoted


def test_an_obstacle_keeps_the_champion_and_is_the_reason() -> None:
    verdict = _decide(0, None, obstacle="it takes other features")
    assert not verdict.promoted
    assert (
        verdict.reason
        == "macro F1 1.000 (1.000 to 1.000), but the champion cannot be compared: it takes other features"
    )
    assert (verdict.champion_f1, verdict.gain, verdict.better_in) == (None, None, None)


def test_one_speaker_proves_nothing() -> None:
    alone = np.zeros(60, np.int64)
    verdict = _decide(3, 30, speaker=alone)
    assert not verdict.promoted
    assert verdict.reason.endswith(
        "gain +0.450, from a single speaker, which is no evidence at promotion.confidence 0.9"
    )
    assert _decide(3, 30, PromotionConfig(confidence=0), speaker=alone).promoted


def test_a_language_that_the_champion_does_not_know_is_said() -> None:
    champion = Champion(Answers(TRUE, np.where(TRUE == 2, 0, TRUE), np.arange(60)), unknown=[2])
    verdict = _decide(3, champion)
    assert verdict.promoted
    # without fr, of 40 recordings the challenger has two wrong and the champion none
    assert verdict.reason.endswith(
        "the champion does not know fr, which counts as F1 0 for it; "
        "on the other languages macro F1 0.962 against its 1.000"
    )
    nothing = Champion(Answers(TRUE, np.full(60, 3), np.arange(60)), unknown=[0, 1, 2])
    assert _decide(3, nothing).reason.endswith("does not know de, en, fr, which counts as F1 0 for it")


def _pair(each: int, gain: float, seed: int) -> tuple[Answers, Answers]:
    """Six recordings of each speaker of three languages; some speakers are easier, for both models."""
    rng = np.random.default_rng(seed)
    speaker = np.repeat(np.arange(3 * each), 6)
    true, rate = speaker // each, rng.beta(2.4, 1.6, 3 * each)[speaker]
    found = []
    for better in (gain, 0.0):
        right = rng.random(len(speaker)) < np.clip(rate + better, 0, 1)
        found.append(Answers(true, np.where(right, true, (true + rng.integers(1, 3, len(true))) % 3), speaker))
    return found[0], found[1]


@pytest.mark.slow
@pytest.mark.parametrize(("each", "gain", "least", "most"), [
    (3, -0.05, 0, 0.1), (3, 0, 0.05, 0.25), (3, 0.1, 0.4, 0.65),
    (10, -0.05, 0, 0.03), (10, 0, 0.03, 0.15), (10, 0.1, 0.65, 0.9),
])  # fmt: skip
def test_how_often_a_model_is_promoted(each: int, gain: float, least: float, most: float) -> None:
    pairs = [_pair(each, gain, seed) for seed in range(300)]
    promoted = [decide(one, Champion(other), RULE, 1, LABELS).promoted for one, other in pairs]
    assert least <= np.mean(promoted) <= most
