"""The rule that decides whether a model replaces the champion: from the answers of both to a comparison."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model.config import PromotionConfig
from model.metrics.bootstrap import Answers, gain, macro_f1
from model.metrics.estimate import Estimate
from model.registry.history import Comparison


@dataclass(frozen=True)
class Champion:
    """The champion on the current test split: its answers, and the codes of languages that it was not trained on."""

    answers: Answers
    unknown: Sequence[int] = ()


def decide(
    challenger: Answers, champion: Champion | None, rule: PromotionConfig, seed: int, labels: Sequence[str],
    obstacle: str | None = None,
) -> Comparison:  # fmt: skip
    """Compare the challenger with the champion or, if there is none, with chance.

    Chance is 1 / (languages in the test split): neither guessing nor naming one language always has a higher macro F1.
    `obstacle` is the reason why a champion cannot be compared; it then stays. `labels` are the languages by code.
    """
    f1 = macro_f1(challenger, seed)
    recordings, speakers = len(challenger.true), challenger.speakers
    if obstacle is not None:
        reason = f"macro F1 {f1}, but the champion cannot be compared: {obstacle}"
        return Comparison(
            promoted=False, reason=reason, challenger_f1=f1, recordings=recordings, speakers=speakers
        )  # fmt: skip
    chance = 1 / len(np.unique(challenger.true))
    difference, share = gain(challenger, chance if champion is None else champion.answers, rule.min_gain, seed)
    enough = difference.value > rule.min_gain and (rule.confidence == 0 or (share or 0) >= rule.confidence)
    champion_f1 = None if champion is None else macro_f1(champion.answers, seed)
    opponent = f"chance {chance:.3f}" if champion_f1 is None else f"{champion_f1} of the champion"
    reasons = [f"macro F1 {f1}, against {opponent}", _explain_gain(difference, share, rule)]
    if champion is not None and champion.unknown:
        reasons.append(_explain_unknown(challenger, champion, labels))
    return Comparison(
        promoted=enough, reason="; ".join(reasons), challenger_f1=f1, champion_f1=champion_f1, gain=difference,
        better_in=share, recordings=recordings, speakers=speakers,
    )  # fmt: skip


def _explain_gain(difference: Estimate, share: float | None, rule: PromotionConfig) -> str:
    """Return the gain, and how it compares with the rule."""
    text = f"gain {difference.value:+.3f}"
    if difference.low is not None:
        text += f" ({difference.low:+.3f} to {difference.high:+.3f})"
    if difference.value <= rule.min_gain:
        return f"{text}, not above promotion.min_gain {rule.min_gain:g}"
    if share is None:
        return f"{text}, from a single speaker, which is no evidence at promotion.confidence {rule.confidence:g}"
    required = f"promotion.confidence requires {rule.confidence:.1%}"
    return f"{text}, above {rule.min_gain:g} in {share:.1%} of resamples, {required}"


def _explain_unknown(challenger: Answers, champion: Champion, labels: Sequence[str]) -> str:
    """Return the languages that the champion does not know, and the comparison on the others."""
    names = ", ".join(labels[code] for code in champion.unknown)
    keep = ~np.isin(challenger.true, champion.unknown)
    text = f"the champion does not know {names}, which counts as F1 0 for it"
    if not keep.any():
        return text
    one, other = (macro_f1(answers.only(keep), seed=0).value for answers in (challenger, champion.answers))
    return f"{text}; on the other languages macro F1 {one:.3f} against its {other:.3f}"
