"""The rule by which a model takes the place of the one that serves: from answers to a verdict with its reason."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.config import PromotionConfig
from model.metrics.bootstrap import Answers, Estimate, gain, macro_f1


@dataclass(frozen=True)
class Champion:
    """The model that serves, as the challenger's opponent on the current test split."""

    answers: Answers
    unknown: Sequence[int] = ()
    """Codes of spoken languages that it was not trained on."""


@dataclass(frozen=True)
class Verdict:
    """Whether the challenger is promoted, why, and the numbers that say so; None where they are not known."""

    promoted: bool
    reason: str
    challenger_f1: Estimate
    champion_f1: Estimate | None
    gain: Estimate | None
    better_in: float | None
    recordings: int
    speakers: int


def decide(
    challenger: Answers, champion: Champion | None, rule: PromotionConfig, seed: int, labels: Sequence[str],
    obstacle: str | None = None,
) -> Verdict:  # fmt: skip
    """Judge the challenger against the champion or, where there is none, against chance.

    Chance is 1 / (languages spoken): neither naming one language always nor guessing has a higher macro F1. Without a
    champion's answers although one serves, `obstacle` says why, and the champion stays.
    """
    f1 = macro_f1(challenger, seed)
    size = {"recordings": len(challenger.true), "speakers": challenger.speakers}
    if obstacle is not None:
        reason = f"macro F1 {f1}, but the champion cannot be compared: {obstacle}"
        return Verdict(False, reason, f1, None, None, None, **size)
    chance = 1 / len(np.unique(challenger.true))
    opponent = chance if champion is None else champion.answers
    difference, share = gain(challenger, opponent, rule.min_gain, seed)
    enough = difference.value > rule.min_gain and (rule.confidence == 0 or (share or 0) >= rule.confidence)
    other_f1 = None if champion is None else macro_f1(champion.answers, seed)
    against = f"chance, {chance:.3f}" if other_f1 is None else f"the champion's {other_f1}"
    parts = [f"macro F1 {f1} against {against}", _of_gain(difference, share, rule)]
    if champion is not None and champion.unknown:
        parts.append(_of_unknown(challenger, champion, labels))
    return Verdict(enough, "; ".join(parts), f1, other_f1, difference, share, **size)


def _of_gain(difference: Estimate, share: float | None, rule: PromotionConfig) -> str:
    """Say what the gain is, and what the rule makes of it."""
    text = f"gain {difference.value:+.3f}"
    if difference.low is not None:
        text += f" ({difference.low:+.3f} to {difference.high:+.3f})"
    if difference.value <= rule.min_gain:
        return f"{text}, not above promotion.min_gain {rule.min_gain:g}"
    if share is None:
        return f"{text}, of one speaker, which proves nothing; promotion.confidence is {rule.confidence:g}"
    asked = f"promotion.confidence asks for {rule.confidence:.1%}"
    return f"{text}, above {rule.min_gain:g} in {share:.1%} of resamples, {asked}"


def _of_unknown(challenger: Answers, champion: Champion, labels: Sequence[str]) -> str:
    """Say which languages the champion cannot know, and how the two compare on the others."""
    names = ", ".join(labels[code] for code in champion.unknown)
    keep = ~np.isin(challenger.true, champion.unknown)
    text = f"the champion does not know {names}, whose F1 counts as 0 for it"
    if not keep.any():
        return text
    one, other = (macro_f1(answers.only(keep), seed=0).value for answers in (challenger, champion.answers))
    return f"{text}; on the other languages {one:.3f} against its {other:.3f}"
