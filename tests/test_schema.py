"""The schema: places in an output folder, CF flags, labels, files that are never seen half-written."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from pipeline.durable_files import write_atomically
from pipeline.outputs import OutputFolder
from pipeline.schema import (
    LEDGER_COLUMNS,
    MANIFEST_COLUMNS,
    SPLITS,
    flag_attributes,
    flag_names,
    label_of_folder,
    reason_kind,
)
from pipeline.storage import is_local

words = st.from_regex(r"\S+", fullmatch=True)


def test_everything_has_its_promised_place(tmp_path: Path) -> None:
    output = OutputFolder.at(str(tmp_path))
    places = [
        output.manifest,
        output.ledger,
        output.store,
        output.shard_record(7),
        output.model("lstm"),
        output.metrics("lstm"),
        output.report,
        output.run,
    ]
    assert [str(place.relative_to(output.root)) for place in places] == [
        "manifest.parquet",
        "ledger.parquet",
        "features.zarr",
        "shards/00000007.json",
        "models/lstm",
        "metrics/lstm.json",
        "report",
        "run.json",
    ]


def test_relative_output_folder_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(OutputFolder.at("out").root) == str(tmp_path / "out")


def test_url_stays_a_url() -> None:
    output = OutputFolder.at("memory://bucket/out")
    assert str(output.manifest) == "memory://bucket/out/manifest.parquet"
    assert not is_local(output.root)


def test_path_is_local(tmp_path: Path) -> None:
    assert is_local(UPath(str(tmp_path)))


def test_columns_of_the_contract_are_there() -> None:
    promised = (
        "recording_id uri label speaker split duration_s sample_rate_hz channels frames sequences first_sequence"
    )
    assert set(promised.split()) <= set(MANIFEST_COLUMNS)
    assert LEDGER_COLUMNS == ("recording_id", "status", "reason", "decoded_frames", "sequences_written")


def test_splits_have_the_codes_of_the_contract() -> None:
    assert flag_attributes(SPLITS) == {"flag_values": [0, 1, 2], "flag_meanings": "train validation test"}


@given(st.lists(words, unique=True))
def test_flag_names_are_the_inverse_of_flag_attributes(names: list[str]) -> None:
    assert list(flag_names(flag_attributes(names))) == names


@pytest.mark.parametrize("bad", ["", " ", "a b", "a\tb", " a b "])
def test_flag_meanings_with_white_space_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="without white space"):
        flag_attributes(["de", bad])


@given(st.text(min_size=1))
def test_every_label_is_a_flag_meaning(folder: str) -> None:
    label = label_of_folder(folder)
    assert flag_names(flag_attributes([label])) == (label,)


@pytest.mark.parametrize(
    ("folder", "label"),
    [("de", "de"), ("Hoch deutsch", "Hoch_deutsch"), (" a \t b\n", "a_b"), ("ä<b>", "ä<b>"), (" ", "_")],
)
def test_white_space_in_labels_becomes_an_underscore(folder: str, label: str) -> None:
    assert label_of_folder(folder) == label


def test_atomic_write_makes_folders_and_leaves_one_file(tmp_path: Path) -> None:
    path = UPath(str(tmp_path / "a" / "b.json"))
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert [p.name for p in path.parent.iterdir()] == ["b.json"]
    assert path.read_bytes() == b"two"


def test_atomic_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "b.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_atomically(UPath(str(tmp_path / "b.json")), b"one")
    assert [p.name for p in tmp_path.iterdir()] == ["b.json"]


def test_atomic_write_to_a_url(memory_url: str) -> None:
    path = UPath(f"{memory_url}/a/b.json")
    write_atomically(path, b"one")
    assert path.read_bytes() == b"one"


def test_reasons_that_differ_in_numbers_alone_are_of_one_kind() -> None:
    assert reason_kind("ends after 3.20 s of 1,000") == reason_kind("ends after 7 s of 2") == "ends after … s of …"
    assert reason_kind("not readable as audio") == "not readable as audio"
