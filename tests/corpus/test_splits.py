"""Splits: by speaker, in the fractions of each language's duration, the same on every machine."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import SplitConfig
from pipeline.corpus.database import stable_hash
from pipeline.schema import SPLITS
from tests.conftest import make_probe
from tests.support.manifests import SHORT, build, probes_of, recordings, simple, split_of_speaker


@given(recordings, st.integers(0, 2**32 - 1))
def test_every_speaker_has_one_split(found: list[tuple[str, str | None, int]], seed: int) -> None:
    table = build(probes_of(found), seed)
    assert set(table["split"]) <= set(SPLITS)
    assert (table.groupby("speaker")["split"].nunique() == 1).all()


@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.sampled_from([SHORT, 16_000, 90_000])), min_size=1),
    st.integers(0, 2**32 - 1),
    st.sampled_from([SplitConfig(), SplitConfig(train=1, validation=0, test=0)]),
)
def test_first_three_usable_speakers_give_train_test_validation(
    found: list[tuple[str, int]], seed: int, split: SplitConfig
) -> None:
    places = [("de", f"de-{speaker}", samples) for speaker, samples in found]
    table = build(probes_of(places), seed, split)
    german = table[(table["label"] == "de") & (table["speaker"] != "usable in all")]
    everyone = split_of_speaker(table)
    usable = german[german["sequences"] > 0]["speaker"].unique().tolist()
    # the speaker of all languages is German as well
    ranked = sorted([*usable, "usable in all"], key=lambda name: stable_hash(f"{seed}\0{name}"))
    assert [everyone[name] for name in ranked[:3]] == ["train", "test", "validation"][: len(ranked)]
    assert all(everyone[name] == "train" for name in set(german["speaker"]) - set(usable))


def test_speaker_of_several_languages_keeps_the_split_of_the_first() -> None:
    both = [f"both-{number}" for number in range(6)]
    alone = split_of_speaker(simple({"de": both, "en": ["x"]}))
    together = split_of_speaker(simple({"de": both, "en": [*both, "x", "y"]}))
    assert {name: together[name] for name in both} == {name: alone[name] for name in both}


def test_language_whose_speakers_have_all_splits_leaves_its_own_to_the_fractions() -> None:
    both = [f"both-{number}" for number in range(3)]
    split = split_of_speaker(simple({"de": both, "en": [*both, "x"]}))
    assert sorted(split[name] for name in both) == ["test", "train", "validation"]
    # a quarter each: training has 1 of 2.8, and takes the fourth
    assert split["x"] == "train"


def test_recording_that_cannot_be_used_does_not_decide_the_speakers_split() -> None:
    english = ["a", "b", "c"]
    probes = [make_probe(f"en/{speaker}/0.wav") for speaker in english]
    german = [make_probe(f"de/{speaker}/0.wav", SHORT) for speaker in english] + [make_probe("de/d/0.wav")]
    assert sorted(split_of_speaker(build(probes + german))[name] for name in english) == [
        "test",
        "train",
        "validation",
    ]


@pytest.mark.parametrize("fractions", [(0.7, 0.15, 0.15), (0.5, 0.25, 0.25), (0.9, 0.1, 0.0), (0.34, 0.33, 0.33)])
def test_fractions_of_duration_are_reached_with_many_speakers(fractions: tuple[float, float, float]) -> None:
    lengths = np.random.default_rng(1).integers(16_000, 160_000, size=(2, 200))
    probes = [
        make_probe(f"{language}/{language}{speaker}/0.wav", int(samples))
        for language, row in zip(("de", "en"), lengths, strict=True)
        for speaker, samples in enumerate(row)
    ]
    split = SplitConfig(**dict(zip(SPLITS, fractions, strict=True)))
    table = build(probes, split=split)
    duration_s = table.pivot_table(index="label", columns="split", values="duration_s", aggfunc="sum")[list(SPLITS)]
    found = duration_s.div(duration_s.sum(axis=1), axis=0).to_numpy()
    # the longest speaker has under a hundredth of a language
    np.testing.assert_allclose(found, [fractions] * 2, atol=0.01)


def test_hashes_are_the_same_on_every_machine() -> None:
    names = [(0, ""), (1, "anna"), (1, "Jörg Müller"), (2, "anna"), (2**32 - 1, "\0de/1.wav")]
    assert [stable_hash(f"{seed}\0{name}") for seed, name in names] == [
        11401113931532778961,
        17918524950352309846,
        17750223533510907101,
        3105162081419620846,
        11151820558886641691,
    ]


def test_hash_of_a_seed_and_a_name_is_not_that_of_their_digits_joined() -> None:
    assert stable_hash("1\0001a") != stable_hash("11\0a")


def test_recordings_without_a_speaker_are_split_one_by_one() -> None:
    table = build([make_probe(f"{language}/{number}.wav") for language in ("de", "en") for number in range(40)])
    assert table["speaker"].isna().all()
    assert table.groupby("label")["split"].nunique().to_list() == [3, 3]
    assert set(table["split"].value_counts()[list(SPLITS)] // 2) == {28, 6}


def test_speaker_named_like_a_recording_is_not_that_recording() -> None:
    probes = [make_probe("de/0.wav"), make_probe("de/de/0.wav"), make_probe("en/0.wav")]
    assert len(build(probes).groupby(["label", "recording_id"])) == 3
