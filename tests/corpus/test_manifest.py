"""The manifest: splits by speaker, the permutation, the place of every sequence, and the digest."""

import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from pipeline import storage
from pipeline.config import PipelineConfig, SplitConfig, StoreConfig
from pipeline.corpus.manifest import as_codes, label_names, languages_without, manifest_digest, split_runs
from pipeline.corpus.splits import stable_hash
from pipeline.errors import UsageError
from pipeline.features.mfcc import Mfcc
from pipeline.schema import MANIFEST_COLUMNS, SPLITS
from tests.conftest import Probe, make_manifest, make_probe

CONFIG = PipelineConfig()
SHORT = 16_000 // 10  # samples: less than one sequence
LANGUAGES = ("de", "en", "fr")

speakers = st.one_of(st.none(), st.sampled_from("abcdefgh"))
recordings = st.lists(
    st.tuples(st.sampled_from(LANGUAGES), speakers, st.one_of(st.just(SHORT), st.integers(SHORT, 200_000))),
    max_size=40,
)


def path_of(language: str, speaker: str | None, number: int) -> str:
    return "/".join(part for part in (language, speaker, f"{number}.wav") if part is not None)


def probes_of(found: list[tuple[str, str | None, int]]) -> list[Probe]:
    """Probes of some recordings, and one usable recording more of each language."""
    usable = [(language, "usable in all", 100_000) for language in LANGUAGES]
    return [make_probe(path_of(*place, number), samples) for number, (*place, samples) in enumerate(found + usable)]


def build(probes: list[Probe], seed: int = 1, split: SplitConfig = CONFIG.split) -> pd.DataFrame:
    return make_manifest(probes, PipelineConfig(seed=seed, split=split))


def simple(speakers_of: dict[str, list[str]], seed: int = 1) -> pd.DataFrame:
    """One recording of a second for each speaker."""
    return build(
        [make_probe(f"{language}/{s}/0.wav") for language in speakers_of for s in speakers_of[language]], seed
    )


def split_of_speaker(table: pd.DataFrame) -> dict[str, str]:
    return dict(zip(table["speaker"], table["split"], strict=True))


@given(recordings, st.integers(0, 2**32 - 1))
def test_every_speaker_has_one_split(found: list[tuple[str, str | None, int]], seed: int) -> None:
    table = build(probes_of(found), seed)
    assert set(table["split"]) <= set(SPLITS)
    assert (table.groupby("speaker")["split"].nunique() == 1).all()


@given(recordings, st.randoms(use_true_random=False))
def test_manifest_does_not_depend_on_the_order_of_the_recordings(
    found: list[tuple[str, str | None, int]], shuffling: random.Random
) -> None:
    probes = probes_of(found)
    expected = build(probes)
    shuffling.shuffle(probes)
    pd.testing.assert_frame_equal(build(probes), expected)


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
    ranked = sorted([*usable, "usable in all"], key=lambda name: stable_hash(seed, name))
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


def test_another_seed_gives_other_splits_and_another_order() -> None:
    speakers_of = {language: [f"{language}{number}" for number in range(20)] for language in ("de", "en")}
    first, second = simple(speakers_of, seed=1), simple(speakers_of, seed=2)
    assert split_of_speaker(first) != split_of_speaker(second)
    assert list(first["recording_id"]) != list(second["recording_id"])
    assert manifest_digest(first) != manifest_digest(second)


def test_hashes_are_the_same_on_every_machine() -> None:
    names = [(0, ""), (1, "anna"), (1, "Jörg Müller"), (2, "anna"), (2**32 - 1, "\0de/1.wav")]
    assert [stable_hash(*name) for name in names] == [
        11401113931532778961,
        17918524950352309846,
        17750223533510907101,
        3105162081419620846,
        11151820558886641691,
    ]


def test_hash_of_a_seed_and_a_name_is_not_that_of_their_digits_joined() -> None:
    assert stable_hash(1, "1a") != stable_hash(11, "a")


def test_recordings_without_a_speaker_are_split_one_by_one() -> None:
    table = build([make_probe(f"{language}/{number}.wav") for language in ("de", "en") for number in range(40)])
    assert table["speaker"].isna().all()
    assert table.groupby("label")["split"].nunique().to_list() == [3, 3]
    assert set(table["split"].value_counts()[list(SPLITS)] // 2) == {28, 6}


def test_speaker_named_like_a_recording_is_not_that_recording() -> None:
    probes = [make_probe("de/0.wav"), make_probe("de/de/0.wav"), make_probe("en/0.wav")]
    assert len(build(probes).groupby(["label", "recording_id"])) == 3


def test_rows_are_ordered_by_split_and_mixed_within() -> None:
    speakers_of = {language: [f"{language}{number:02}" for number in range(50)] for language in LANGUAGES}
    table = simple(speakers_of)
    codes = table["split"].map({split: code for code, split in enumerate(SPLITS)})
    assert codes.is_monotonic_increasing
    for _, rows in table.groupby("split"):
        hashes = [stable_hash(1, name) for name in rows["recording_id"]]
        assert hashes == sorted(hashes)
    training = table[table["split"] == "train"]["label"]
    # runs of one language in a random order of three have 1.5 rows on average, in the order of names 35
    assert (training != training.shift()).sum() > len(training) / 3


@given(recordings)
def test_sequences_lie_one_after_the_other(found: list[tuple[str, str | None, int]]) -> None:
    table = build(probes_of(found))
    assert table["first_sequence"].tolist() == [0, *table["sequences"].cumsum().tolist()[:-1]]
    assert (table["sequences"] == table["frames"] // CONFIG.store.timesteps).all()


@given(recordings)
def test_runs_of_the_splits_tile_the_store(found: list[tuple[str, str | None, int]]) -> None:
    table = build(probes_of(found))
    runs = split_runs(table)
    held: dict[str, int] = defaultdict(int)
    position = 0
    for split in SPLITS:
        for start, stop in runs.get(split, []):
            assert start == position < stop
            held[split] += stop - start
            position = stop
    assert position == table["sequences"].sum()
    for split, rows in table.groupby("split"):
        assert rows["sequences"].sum() == held[split]
        inside = rows[rows["sequences"] > 0]["first_sequence"]
        assert all(runs[split][0][0] <= first < runs[split][0][1] for first in inside)


def test_columns_and_types_are_the_contract() -> None:
    config = PipelineConfig(features=Mfcc(sample_rate_hz=8000), store=StoreConfig(timesteps=10))
    probes = [make_probe("de/anna/0.wav", 44_100, 44_100), make_probe("en/x.wav", error="the file is empty")]
    probes += [make_probe("en/y.wav")]
    table = make_manifest(probes, config).set_index("recording_id")
    assert (table.index.name, *table.columns) == MANIFEST_COLUMNS
    good, bad = table.loc["de/anna/0.wav"], table.loc["en/x.wav"]
    assert (good["uri"], good["label"], good["speaker"]) == ("/corpus/de/anna/0.wav", "de", "anna")
    assert (good["duration_s"], good["sample_rate_hz"], good["channels"], good["size_bytes"]) == (
        1.0,
        44_100,
        1,
        88_200,
    )
    # 8,000 samples in hops of 80, centred
    assert (good["frames"], good["sequences"]) == (101, 10)
    assert pd.isna(good["error"])
    assert (bad["error"], bad["split"], bad["frames"], bad["sequences"]) == ("the file is empty", "train", 0, 0)
    assert (bad["duration_s"], bad["sample_rate_hz"], bad["channels"]) == (0, 0, 0)
    assert pd.isna(bad["speaker"])
    types = table.dtypes.astype(str)
    assert list(types[["sample_rate_hz", "channels", "frames", "first_sequence"]]) == ["int32"] * 2 + ["int64"] * 2


def test_language_with_nothing_usable_is_refused() -> None:
    probes = [make_probe("de/0.wav"), make_probe("en/0.wav", SHORT), make_probe("en/1.wav", error="the file is empty")]
    with pytest.raises(UsageError) as error:
        build([*probes, make_probe("en/2.wav", error="the file is empty")])
    assert str(error.value) == (
        "language 'en' has no usable recording (2 unreadable, 1 shorter than 0.2 s); repair its files or remove "
        "the folder"
    )


DIGESTED = build(
    [make_probe("de/anna/0.wav"), make_probe("de/x.wav"), make_probe("en/bob/0.wav"), make_probe("en/y", error="e")]
)


def test_digest_survives_writing_and_reading(tmp_path: Path) -> None:
    path = UPath(str(tmp_path / "manifest.parquet"))
    storage.write_parquet(path, DIGESTED)
    read = storage.read_parquet(path)
    pd.testing.assert_frame_equal(read, DIGESTED)
    assert manifest_digest(read) == manifest_digest(DIGESTED)


@pytest.mark.parametrize(("column", "value"), [("uri", "s3://elsewhere"), ("append_index", 1), ("masked", "gone")])
def test_digest_does_not_depend_on_where_the_files_lie_nor_on_what_became_of_them(column: str, value: object) -> None:
    assert manifest_digest(DIGESTED.assign(**{column: value})) == manifest_digest(DIGESTED)


@pytest.mark.parametrize(
    "column", [name for name in MANIFEST_COLUMNS if name not in ("uri", "append_index", "masked")]
)
@pytest.mark.parametrize("row", range(4))
def test_digest_changes_with_every_other_value(column: str, row: int) -> None:
    changed = DIGESTED.copy()
    number = pd.api.types.is_numeric_dtype(changed[column])
    changed.loc[row, column] = np.nan_to_num(changed.loc[row, column]) + 1 if number else "other"
    assert manifest_digest(changed) != manifest_digest(DIGESTED)


def test_digest_changes_with_the_order_of_rows() -> None:
    assert manifest_digest(DIGESTED[::-1]) != manifest_digest(DIGESTED)


def test_labels_are_sorted_and_languages_without_a_split_are_named() -> None:
    table = simple({"fr": ["f1", "f2", "f3"], "de": ["d1", "d2"], "en": ["e1"]})
    assert label_names(table) == ("de", "en", "fr")
    assert [languages_without(table, split) for split in SPLITS] == [[], ["de", "en"], ["en"]]


def test_codes_are_positions() -> None:
    codes = as_codes(pd.Series(["b", "a", "b"]), ["a", "b"])
    np.testing.assert_array_equal(codes, [1, 0, 1])
    assert codes.dtype == np.int64
