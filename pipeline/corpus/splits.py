"""The split of each recording: by speaker, in the configured fractions of each language's duration."""

import hashlib
from collections.abc import Mapping
from typing import Final

import pandas as pd

from pipeline.config import SplitConfig
from pipeline.corpus.sources import recording_names
from pipeline.schema import SPLITS

SPLITS_OF_FEW_SPEAKERS: Final = ("train", "test", "validation")
"""The splits of a language's first speakers: a language with few speakers can be trained before it can be tested."""


def assign_splits(recordings: pd.DataFrame, usable_s: pd.Series, fractions: SplitConfig, seed: int) -> pd.Series:
    """Return the split of each row of `recordings`, a listing or a manifest.

    `usable_s` is the duration of each row that training can use. Rows whose column `split`, if there is one, is not
    NA have a split already.

    All recordings of a speaker are in one split. A recording without a speaker counts as a speaker of its own; all
    segments of one recording without a speaker count as one speaker. Within a language, speakers are ordered by a
    stable hash of seed and name. The first speaker goes to training, the second to test, the third to validation. The
    others go to training until its fraction of the language's duration is reached, then to validation, then to test.
    A speaker of several languages keeps the split that the first language, by name, gave.

    Speakers that already have a split keep it, even if none of their recordings is usable. New speakers of a language
    fill its empty splits first, in the order training, test, validation, and then the fractions of the duration that
    the language has now. Splits therefore depend on which recordings were added together.
    """
    speaker = _speakers(recordings)
    duration_s = usable_s.groupby([recordings["label"], speaker]).sum()
    split_of: dict[str, str] = {}
    if "split" in recordings:
        known = recordings["split"].notna()
        split_of = dict(zip(speaker[known], recordings["split"][known], strict=True))
    for label in duration_s.index.unique(level=0):
        _split_language(duration_s[label].to_dict(), fractions, seed, split_of)
    # speakers without any usable recording have no influence on the others
    return speaker.map(split_of).fillna("train")


def stable_hash(seed: int, name: str) -> int:
    """Return a 64-bit hash that is the same on every machine and in every version of Python."""
    text = f"{seed}\0{name}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def _speakers(recordings: pd.DataFrame) -> pd.Series:
    # no path holds a NUL, so a recording is never taken for a speaker
    return recordings["speaker"].fillna("\0" + recording_names(recordings))


def _split_language(
    duration_s: Mapping[str, float], fractions: SplitConfig, seed: int, split_of: dict[str, str]
) -> None:
    """Write the split of each speaker of one language into `split_of`, except where another language gave one."""
    held_s = dict.fromkeys(SPLITS, 0.0)
    for name, seconds in duration_s.items():
        if name in split_of:
            held_s[split_of[name]] += seconds
    new = sorted((name for name in duration_s if name not in split_of), key=lambda name: stable_hash(seed, name))
    usable = [name for name in new if duration_s[name] > 0]
    empty = [split for split in SPLITS_OF_FEW_SPEAKERS if held_s[split] == 0]
    for name, split in zip(usable, empty, strict=False):
        split_of[name] = split
        held_s[split] += duration_s[name]
    total_s = sum(duration_s.values())
    for name in usable[len(empty) :]:
        # the split whose share of the duration contains the middle of the speaker
        middle_s = duration_s[name] / 2
        if held_s["train"] + middle_s <= fractions.train * total_s:
            split = "train"
        elif held_s["validation"] + middle_s <= fractions.validation * total_s:
            split = "validation"
        else:
            split = "test"
        split_of[name] = split
        held_s[split] += duration_s[name]
