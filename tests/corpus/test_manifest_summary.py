"""What follows from all rows of a manifest: the same whatever the size of its row groups is."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from pipeline.corpus import manifest_summary
from pipeline.corpus.manifest import as_codes, masked_rows
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.corpus.speakers import SpeakerCodes, count_speakers
from pipeline.schema import MANIFEST_COLUMNS, SPLITS
from tests.support.manifests import build, manifest_digest, probes_of, recording_names, recordings, rows_before, simple
from tests.support.scans import in_plan_order

SIZES = st.integers(1, 50)
few_examples = settings(max_examples=12)


@st.composite
def appended(draw: st.DrawFn) -> pd.DataFrame:
    """A manifest with appends; rows of the last one may stand among earlier rows, and some recordings are masked."""
    table = build(probes_of(draw(recordings)))
    append = np.sort(draw(st.lists(st.integers(0, 2), min_size=len(table), max_size=len(table))))
    append -= append[0]
    parts, begin = [], 0
    for index in np.unique(append):
        part = in_plan_order(table[append == index].assign(append_index=np.int32(index)), 1)
        parts.append(part.assign(first_sequence=part["first_sequence"] + begin))
        begin += int(part["sequences"].sum())
    table = pd.concat(parts, ignore_index=True)
    moved = draw(st.permutations(range(len(table)))) if draw(st.booleans()) else range(len(table))
    reasons = draw(st.lists(st.sampled_from([None, "", "gone"]), min_size=len(table), max_size=len(table)))
    return table.iloc[list(moved)].reset_index(drop=True).assign(masked=pd.array(reasons, "string"))


@few_examples
@given(appended(), SIZES)
def test_digests_of_all_rows_and_of_the_first_appends_are_those_of_the_table(table: pd.DataFrame, size: int) -> None:
    file = ManifestFile.of(table, size)
    assert file.digest() == manifest_digest(table)
    last = int(table["append_index"].max())
    assert file.last_append == last
    for index in range(last + 1):
        earlier = manifest_digest(table[table["append_index"] <= index])
        assert file.digest(index) == earlier
        assert file.extends(earlier) == (index < last)


@few_examples
@given(appended(), SIZES, st.integers(1, 3))
def test_manifest_before_an_append_is_that_of_the_table(table: pd.DataFrame, size: int, append_index: int) -> None:
    expected = rows_before(table, append_index)
    before = ManifestFile.of(table, size).before(append_index)
    assert len(before) == len(expected)
    found = pd.concat(before.tables(MANIFEST_COLUMNS))
    pd.testing.assert_frame_equal(found, expected[list(MANIFEST_COLUMNS)])
    assert before.digest() == manifest_digest(expected)
    stop = (expected["first_sequence"] + expected["sequences"])[expected["sequences"] > 0].to_numpy().max(initial=0)
    assert before.sequences == stop


@few_examples
@given(appended(), SIZES)
def test_summaries_are_those_of_the_table(table: pd.DataFrame, size: int) -> None:
    file = ManifestFile.of(table, size)
    masked = masked_rows(table)
    assert manifest_summary.longest(file) == int(table["sequences"].to_numpy().argmax())
    assert list(manifest_summary.masked_recordings(file)) == [(row, "gone") for row in np.flatnonzero(masked)]
    kept = table[~masked]
    found = manifest_summary.amounts(file)
    assert (found.unnamed, found.unnamed_masked) == (
        kept["speaker"].isna().sum(), table[masked]["speaker"].isna().sum(),
    )  # fmt: skip
    for (label, split), rows in kept.groupby(["label", "split"]):
        assert found.table.loc[(label, split), "recordings"] == len(rows)
        assert found.table.loc[(label, split), "duration_s"] == pytest.approx(rows["duration_s"].sum(), rel=1e-12)
    for label, rows in kept.groupby("label"):
        assert found.table.loc[(label, "total"), "recordings"] == len(rows)
    numbers = np.flatnonzero(masked).tolist()
    if numbers:
        assert file.rows(numbers, ["recording_id"])["recording_id"].tolist() == table["recording_id"][masked].tolist()
        assert file.names(numbers).startswith(table["recording_id"][numbers[0]])


@few_examples
@given(appended(), SIZES)
def test_runs_of_the_splits_hold_the_sequences_of_their_recordings(table: pd.DataFrame, size: int) -> None:
    runs = manifest_summary.split_runs(ManifestFile.of(table, size))
    split = np.full(int(table["sequences"].sum()), -1)
    for name, spans in runs.items():
        for start, stop in spans:
            assert start < stop
            assert (split[start:stop] == -1).all()
            split[start:stop] = SPLITS.index(name)
    rows = table.sort_values("first_sequence")
    assert split.tolist() == np.repeat(as_codes(rows["split"], SPLITS), rows["sequences"]).tolist()
    assert sum(len(spans) for spans in runs.values()) == 1 + np.count_nonzero(np.diff(split))


def test_languages_without_a_split_follow_the_store_once_there_is_one() -> None:
    table = simple({"de": ["d1", "d2", "d3"], "en": ["e1", "e2", "e3"]})
    of_test = manifest_summary.languages_by_missing_split
    stored = ((table["sequences"] > 0) & (table["label"] != "de")).to_numpy()
    for size in (1, 4, 100):
        assert of_test(ManifestFile.of(table, size))["test"] == []
        assert of_test(ManifestFile.of(table, size), stored)["test"] == ["de"]
        assert of_test(ManifestFile.of(table, size), stored[:0])["test"] == ["de", "en"]
        masked = table.assign(masked=pd.array(["gone" if each == "en" else None for each in table["label"]], "string"))
        assert of_test(ManifestFile.of(masked, size))["test"] == ["en"]


def codes(table: pd.DataFrame) -> np.ndarray:
    """A number for the speaker of each row, in the order of the rows."""
    return pd.factorize(table["speaker"].fillna("\0" + recording_names(table)))[0]


@few_examples
@given(appended(), SIZES)
def test_speakers_are_counted_and_numbered_in_the_order_of_the_rows(table: pd.DataFrame, size: int) -> None:
    file, folder = ManifestFile.of(table, size), UPath("memory://nowhere")
    kept, found = table[~masked_rows(table)], count_speakers(file, folder)
    assert found.test == table[table["split"] == "test"]["speaker"].nunique()
    assert found.unmasked[None, None] == kept["speaker"].nunique()
    for (label, split), rows in kept[kept["speaker"].notna()].groupby(["label", "split"]):
        assert found.unmasked[label, split] == rows["speaker"].nunique()
        assert found.unmasked[label, None] == kept[kept["label"] == label]["speaker"].nunique()
        assert found.unmasked[None, split] == kept[kept["split"] == split]["speaker"].nunique()
    test = np.flatnonzero(table["split"] == "test")
    if len(test):
        assert SpeakerCodes.of(file, folder)[test].tolist() == codes(table)[test].tolist()


def test_segments_of_a_recording_without_a_speaker_have_one() -> None:
    table = simple({"de": ["a"], "en": ["b"]}).loc[[0] * 8].reset_index(drop=True)
    table = table.assign(
        recording_id=[f"row {row}" for row in range(8)], split="test", uri=[*"xxyyyyzz"],
        member=pd.array([None, None, "m", "n", "m", "n", None, None], "string"),
        start_s=[0.0, 5.0, 0.0, 0.0, 5.0, 5.0, np.nan, np.nan],
        speaker=pd.array([None] * 7 + ["row 6"], "string"),
    )  # fmt: skip
    found = SpeakerCodes.of(ManifestFile.of(table, 3), UPath("memory://nowhere"))
    assert found[np.arange(8)].tolist() == [0, 0, 1, 2, 1, 2, 3, 4] == codes(table).tolist()
    with pytest.raises(KeyError, match=r"rows \[8\] of the manifest are not in the test split"):
        found[np.array([8])]
