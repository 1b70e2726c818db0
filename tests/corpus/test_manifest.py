"""The manifest: the order of its rows, the place of every sequence, and the digest."""

import random
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from pipeline import durable_files
from pipeline.config import PipelineConfig, StoreConfig
from pipeline.corpus.database import stable_hash
from pipeline.corpus.manifest import UNDIGESTED, as_codes, label_names
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.corpus.manifest_summary import languages_by_missing_split, split_runs
from pipeline.errors import UsageError
from pipeline.features.mfcc import Mfcc
from pipeline.outputs import OutputFolder
from pipeline.schema import MANIFEST_COLUMNS, SPLITS
from tests.conftest import Probe, make_manifest, make_probe
from tests.support.manifests import (
    LANGUAGES,
    SHORT,
    build,
    manifest_digest,
    probes_of,
    read_table,
    recordings,
    simple,
    split_of_speaker,
)
from tests.support.scans import compacted_manifest

CONFIG = PipelineConfig()


@given(recordings, st.randoms(use_true_random=False))
def test_manifest_does_not_depend_on_the_order_of_the_recordings(
    found: list[tuple[str, str | None, int]], shuffling: random.Random
) -> None:
    probes = probes_of(found)
    expected = build(probes)
    shuffling.shuffle(probes)
    pd.testing.assert_frame_equal(build(probes), expected)


def test_another_seed_gives_other_splits_and_another_order() -> None:
    speakers_of = {language: [f"{language}{number}" for number in range(20)] for language in ("de", "en")}
    first, second = simple(speakers_of, seed=1), simple(speakers_of, seed=2)
    assert split_of_speaker(first) != split_of_speaker(second)
    assert list(first["recording_id"]) != list(second["recording_id"])
    assert manifest_digest(first) != manifest_digest(second)


def test_rows_are_ordered_by_split_and_mixed_within() -> None:
    speakers_of = {language: [f"{language}{number:02}" for number in range(50)] for language in LANGUAGES}
    table = simple(speakers_of)
    codes = table["split"].map({split: code for code, split in enumerate(SPLITS)})
    assert codes.is_monotonic_increasing
    for _, rows in table.groupby("split"):
        hashes = [stable_hash(f"1\0{name}") for name in rows["recording_id"]]
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
    runs = split_runs(ManifestFile.of(table))
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
        "language 'en' has no usable recording (2 unreadable, 1 shorter than one sequence of 0.2 s; en/1.wav: the "
        "file is empty); repair its files or remove the folder"
    )


DIGESTED = build(
    [make_probe("de/anna/0.wav"), make_probe("de/x.wav"), make_probe("en/bob/0.wav"), make_probe("en/y", error="e")]
)


def test_digest_survives_writing_and_reading(tmp_path: Path) -> None:
    path = UPath(str(tmp_path / "manifest.parquet"))
    durable_files.write_parquet(path, DIGESTED)
    read = read_table(path)
    pd.testing.assert_frame_equal(read, DIGESTED)
    assert manifest_digest(read) == manifest_digest(DIGESTED)


@pytest.mark.parametrize(
    ("column", "value"),
    [("uri", "s3://elsewhere"), ("append_index", 1), ("masked", "gone"), ("modified_ns", 1), ("transient", True)],
)
def test_digest_does_not_depend_on_where_the_files_lie_nor_on_what_became_of_them(column: str, value: object) -> None:
    assert manifest_digest(DIGESTED.assign(**{column: value})) == manifest_digest(DIGESTED)


@pytest.mark.parametrize("column", [name for name in MANIFEST_COLUMNS if name not in UNDIGESTED])
@pytest.mark.parametrize("row", range(4))
def test_digest_changes_with_every_other_value(column: str, row: int) -> None:
    changed = DIGESTED.copy()
    number = pd.api.types.is_numeric_dtype(changed[column])
    changed.loc[row, column] = np.nan_to_num(changed.loc[row, column]) + 1 if number else "other"
    assert manifest_digest(changed) != manifest_digest(DIGESTED)


def test_digest_does_not_change_as_stores_hold_it() -> None:
    assert manifest_digest(DIGESTED) == "202ac207a8cd0ddaa460159c4bc02869"


def test_digest_changes_with_the_order_of_rows() -> None:
    assert manifest_digest(DIGESTED[::-1]) != manifest_digest(DIGESTED)


def test_labels_are_sorted_and_languages_without_a_split_are_named() -> None:
    table = simple({"fr": ["f1", "f2", "f3"], "de": ["d1", "d2"], "en": ["e1"]})
    assert label_names(table) == ("de", "en", "fr")
    missing = languages_by_missing_split(ManifestFile.of(table))
    assert [missing[split] for split in SPLITS] == [[], ["de", "en"], ["en"]]


def test_codes_are_positions() -> None:
    codes = as_codes(pd.Series(["b", "a", "b"]), ["a", "b"])
    np.testing.assert_array_equal(codes, [1, 0, 1])
    assert codes.dtype == np.int64


def segment(container: str, start_s: float, stop_s: float, label: str = "de", speaker: str | None = None) -> Probe:
    """A segment of a file of 100 s."""
    probe = make_probe(f"{label}/{container}#{start_s:06.2f}", 100 * 16_000)
    return {
        **probe, "uri": f"/corpus/{container}", "start_s": start_s, "stop_s": stop_s, "speaker": speaker,
    }  # fmt: skip


def mixed() -> list[Probe]:
    """Whole recordings, and segments of three files by three speakers each."""
    whole = [make_probe(f"{language}/{number}.wav") for language in LANGUAGES for number in range(9)]
    return whole + [
        segment(f"{file}.wav", start, start + 1.5, "de", f"{file}{start % 3}") for file in "xyz" for start in range(30)
    ]


@given(st.randoms(use_true_random=False))
def test_segments_of_a_file_lie_side_by_side_in_order_of_their_starts(shuffling: random.Random) -> None:
    probes = mixed()
    expected = build(probes)
    shuffling.shuffle(probes)
    pd.testing.assert_frame_equal(build(probes), expected)
    assert expected["split"].map(SPLITS.index).is_monotonic_increasing
    for _, rows in expected[expected["start_s"].notna()].groupby(["split", "uri"]):
        assert (np.diff(rows.index) == 1).all()
        assert rows["start_s"].is_monotonic_increasing
    # the files themselves, and the whole recordings, are in random order
    files = expected[expected["split"] == "train"].groupby("uri").head(1)["recording_id"].tolist()
    assert files != sorted(files)


def test_whole_recordings_have_the_order_that_they_have_without_segments() -> None:
    whole = [probe for probe in mixed() if probe["start_s"] is None]
    alone, together = build(whole), build(mixed())
    keys = ["recording_id"]
    for split in SPLITS:
        of_whole = together[(together["split"] == split) & together["start_s"].isna()]
        common = set(of_whole["recording_id"]) & set(alone[alone["split"] == split]["recording_id"])
        assert common
        orders = [rows[rows["recording_id"].isin(common)][keys] for rows in (of_whole, alone)]
        assert orders[0].to_numpy().tolist() == orders[1].to_numpy().tolist()


def test_compacted_manifest_of_segments_is_that_of_one_run() -> None:
    once = build(mixed())
    pd.testing.assert_frame_equal(compacted_manifest(once, CONFIG), once)


def test_length_of_a_segment_is_cut_at_the_end_of_its_file() -> None:
    table = build([
        make_probe("en/0.wav"), segment("x.wav", 0.0, 2.0), segment("x.wav", 99.5, 120.0),
        segment("x.wav", 101.0, 102.0),
    ]).set_index("recording_id")  # fmt: skip
    assert table["duration_s"].to_dict() == {
        "en/0.wav": 1.0, "de/x.wav#000.00": 2.0, "de/x.wav#099.50": 0.5, "de/x.wav#101.00": 0.0,
    }  # fmt: skip
    assert table["frames"].to_dict()["de/x.wav#099.50"] == 51
    assert table["sequences"].to_dict()["de/x.wav#101.00"] == 0


def test_manifest_without_a_column_is_refused(tmp_path: Path) -> None:
    output = OutputFolder.at(str(tmp_path))
    durable_files.write_parquet(output.manifest, DIGESTED.drop(columns=["size_bytes", "start_s"]))
    with pytest.raises(UsageError) as error:
        ManifestFile.at(output.manifest)
    assert str(error.value) == (
        f"{output.manifest} was written by another version of the pipeline: it has no column start_s, size_bytes; "
        "choose another --out"
    )


def test_manifest_of_an_earlier_version_gets_the_columns_that_it_lacks(tmp_path: Path) -> None:
    output = OutputFolder.at(str(tmp_path))
    durable_files.write_parquet(output.manifest, DIGESTED.drop(columns=["modified_ns", "transient"]))
    manifest, file = DIGESTED.assign(modified_ns=-1, transient=False), ManifestFile.at(output.manifest)
    assert manifest_digest(manifest) == file.digest() == file.before(1).digest() == manifest_digest(DIGESTED)
    pd.testing.assert_frame_equal(pd.concat(file.tables(MANIFEST_COLUMNS)), manifest[list(MANIFEST_COLUMNS)])
    pd.testing.assert_frame_equal(file.read(0, ["transient"]), manifest[["transient"]])
