"""The store: what xarray sees of it, whole shards only, checksums, and equal bytes wherever it lies."""

import hashlib
import json
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.data.store_reader import Store as StoreReader
from pipeline.errors import PipelineError, UsageError
from pipeline.outputs import OutputFolder
from pipeline.schema import SCHEMA_VERSION, SEQUENCE_VARIABLES, SPLITS, STATUSES, flag_attributes
from pipeline.store import feature_store, records
from pipeline.store.feature_store import Outline, rounded
from pipeline.store.records import RecordingOutcome, ShardRecord, StoreAttributes

SEQUENCES, TIMESTEPS, COEFFICIENTS = 10, 3, 2
DTYPES = {variable.name: variable.dtype for variable in SEQUENCE_VARIABLES}
ATTRIBUTES = StoreAttributes(
    schema_version=SCHEMA_VERSION,
    config={"seed": 1},
    config_hash="c",
    manifest_digest="m",
    split_runs={"train": [[0, 10]]},
    versions={"numpy": "2"},
)
OUTLINE = Outline(
    sequences=SEQUENCES,
    timesteps=TIMESTEPS,
    feature_dims={"mfcc": COEFFICIENTS},
    sequences_per_chunk=2,
    sequences_per_shard=4,
    hop_s=0.010,
    attributes=ATTRIBUTES.model_dump(mode="json"),
    variable_attributes={"label": flag_attributes(["de", "en"]), "split": flag_attributes(SPLITS)},
)
COMPRESSED = replace(OUTLINE, compressed=True)
RECORD = ShardRecord(
    index=2,
    checksums={"features": "ab"},
    outcomes=(RecordingOutcome(recording=0, status="ok", reason="", decoded_frames=31, sequences_written=3),),
    train_count=9,
    train_sum=(1, -2),
    train_sum_squares=(3, 4),
)


def created(root: Path | str, outline: Outline = OUTLINE) -> OutputFolder:
    output = OutputFolder.at(str(root))
    feature_store.create(output, outline)
    return output


def arrays_of(index: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Random content of shard `index`; the last shard is half full."""
    count = min(4, SEQUENCES - 4 * index)
    rng = np.random.default_rng([seed, index])
    arrays = {name: rng.integers(0, 2, count).astype(dtype) for name, dtype in DTYPES.items()}
    arrays["features"] = rng.normal(size=(count, TIMESTEPS, COEFFICIENTS)).astype(np.float32)
    arrays["features"][0, 1] = np.nan
    return arrays


def filled(root: Path | str, outline: Outline = OUTLINE) -> OutputFolder:
    output = created(root, outline)
    for index in range(3):
        feature_store.write_shard(output, index, arrays_of(index))
    return output


def opened(output: OutputFolder) -> xr.Dataset:
    """The store as any user of xarray opens it; warnings are errors."""
    return xr.open_zarr(str(output.store))


def objects(root: Path) -> dict[str, str]:
    """Digest of every file below a folder."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.parametrize("outline", [OUTLINE, COMPRESSED])
def test_xarray_reads_what_was_written(tmp_path: Path, outline: Outline) -> None:
    dataset = opened(filled(tmp_path, outline))
    for name, dtype in DTYPES.items():
        expected = np.concatenate([arrays_of(index)[name] for index in range(3)])
        np.testing.assert_array_equal(dataset[name].to_numpy(), expected)
        assert dataset[name].dtype == dtype


def test_store_has_the_dimensions_and_types_of_the_contract(tmp_path: Path) -> None:
    dataset = opened(created(tmp_path))
    assert dict(dataset.sizes) == {"sequence": SEQUENCES, "timestep": TIMESTEPS, "mfcc": COEFFICIENTS}
    found = {name: (array.dims, str(array.dtype)) for name, array in dataset.variables.items()}
    assert found == {
        "features": (("sequence", "timestep", "mfcc"), "float32"),
        "label": (("sequence",), "uint16"),
        "split": (("sequence",), "uint8"),
        "recording": (("sequence",), "uint32"),
        "start_frame": (("sequence",), "uint32"),
        "valid": (("sequence",), "bool"),
        "timestep": (("timestep",), "float32"),
        "mfcc": (("mfcc",), "int32"),
        "train_mean": (("mfcc",), "float64"),
        "train_std": (("mfcc",), "float64"),
        "train_count": ((), "int64"),
    }


def test_sequence_has_no_index(tmp_path: Path) -> None:
    assert set(opened(created(tmp_path)).indexes) == {"timestep", "mfcc"}


def test_indexes_are_seconds_and_numbers(tmp_path: Path) -> None:
    dataset = opened(created(tmp_path))
    np.testing.assert_allclose(dataset["timestep"], [0, 0.010, 0.020], rtol=1e-6)
    np.testing.assert_array_equal(dataset["mfcc"], [0, 1])
    assert dataset["timestep"].attrs["units"] == "s"


def test_flags_say_what_codes_mean(tmp_path: Path) -> None:
    dataset = opened(created(tmp_path))
    assert dataset["label"].attrs["flag_meanings"] == "de en"
    assert list(dataset["label"].attrs["flag_values"]) == [0, 1]
    assert dataset["split"].attrs["flag_meanings"].split() == list(SPLITS)


def test_nothing_is_valid_before_it_is_written(tmp_path: Path) -> None:
    output = created(tmp_path)
    feature_store.write_shard(output, 1, arrays_of(1))
    dataset = opened(output)
    assert dataset["features"][:4].isnull().all()
    assert dataset["features"][8:].isnull().all()
    assert not dataset["valid"][:4].any()
    assert dataset["features"][4].notnull().any()


def test_arrays_are_sharded_alike_and_chunks_are_inside(tmp_path: Path) -> None:
    group = zarr.open_group(str(created(tmp_path).store), mode="r")
    for name in DTYPES:
        array = group[name]
        assert isinstance(array, zarr.Array)
        assert array.metadata.zarr_format == 3
        assert array.shards is not None
        assert (array.chunks[0], array.shards[0]) == (2, 4)


def test_attributes_come_back(tmp_path: Path) -> None:
    output = created(tmp_path)
    assert records.read_attributes(output) == ATTRIBUTES
    assert opened(output).attrs == OUTLINE.attributes


def test_folder_without_a_store_has_no_attributes(tmp_path: Path) -> None:
    assert records.read_attributes(OutputFolder.at(str(tmp_path))) is None


def test_store_that_was_not_finished_is_none_and_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(_: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(zarr, "consolidate_metadata", fails)
        with pytest.raises(OSError, match="no space left"):
            created(tmp_path)
    output = OutputFolder.at(str(tmp_path))
    (tmp_path / "features.zarr" / "label" / "leftover").touch()
    assert records.read_attributes(output) is None
    created(tmp_path)
    created(tmp_path / "fresh")
    assert objects(tmp_path / "features.zarr") == objects(tmp_path / "fresh" / "features.zarr")


def test_creating_twice_gives_an_empty_store(tmp_path: Path) -> None:
    filled(tmp_path / "a")
    created(tmp_path / "a")
    created(tmp_path / "b")
    assert objects(tmp_path / "a") == objects(tmp_path / "b")


def test_store_larger_than_any_disk_opens(tmp_path: Path) -> None:
    outline = replace(OUTLINE, sequences=10**9, sequences_per_chunk=256, sequences_per_shard=4096)
    dataset = xr.open_zarr(str(created(tmp_path, outline).store), chunks=None)
    assert dataset.sizes["sequence"] == 10**9
    assert np.isnan(dataset["features"][10**9 - 1].to_numpy()).all()


@pytest.mark.parametrize("name", DTYPES)
def test_part_of_a_shard_is_refused(tmp_path: Path, name: str) -> None:
    output, arrays = created(tmp_path), arrays_of(0)
    arrays[name] = arrays[name][:2]
    with pytest.raises(ValueError, match=rf"{name} of shard 0: .* is not the whole shard"):
        feature_store.write_shard(output, 0, arrays)


@pytest.mark.parametrize("name", DTYPES)
def test_other_type_is_refused(tmp_path: Path, name: str) -> None:
    output, arrays = created(tmp_path), arrays_of(0)
    arrays[name] = np.zeros(arrays[name].shape, np.int64)
    with pytest.raises(ValueError, match=rf"{name} of shard 0: int64 .* is not the whole shard"):
        feature_store.write_shard(output, 0, arrays)


def test_more_than_the_last_shard_holds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is not the whole shard"):
        feature_store.write_shard(created(tmp_path), 2, arrays_of(1))


@pytest.mark.parametrize("index", [-1, 3, 100])
def test_shard_outside_the_store_is_refused(tmp_path: Path, index: int) -> None:
    with pytest.raises(ValueError, match=f"shard {index} is outside of an array of 10 sequences"):
        feature_store.write_shard(created(tmp_path), index, arrays_of(0))


@pytest.mark.parametrize("content", [np.nan, 0.0])
def test_shard_of_one_value_leaves_all_objects(tmp_path: Path, content: float) -> None:
    output = created(tmp_path)
    arrays = {name: np.zeros(4, dtype) for name, dtype in DTYPES.items()}
    arrays["features"] = np.full((4, TIMESTEPS, COEFFICIENTS), content, np.float32)
    checksums = feature_store.write_shard(output, 1, arrays)
    assert set(checksums) == set(DTYPES)
    assert "missing" not in checksums.values()
    for name in DTYPES:
        stored = [path for path in (tmp_path / "features.zarr" / name / "c").rglob("*") if path.is_file()]
        assert len(stored) == 1
        assert stored[0].stat().st_size > 0


def test_features_are_stored_as_they_are(tmp_path: Path) -> None:
    output = created(tmp_path)
    arrays = arrays_of(0)
    feature_store.write_shard(output, 0, arrays)
    stored = (tmp_path / "features.zarr/features/c/0/0/0").read_bytes()
    assert arrays["features"][:2].tobytes() in stored
    assert arrays["features"][2:].tobytes() in stored


def test_rounded_features_take_less_room(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(512, 20, 40)).astype(np.float32)
    shape = {"sequences": 512, "timesteps": 20, "feature_dims": {"mfcc": 40}}
    sizes = {}
    for bits in (None, 23, 7):
        outline = replace(
            OUTLINE, **shape, sequences_per_chunk=256, sequences_per_shard=512, compressed=bits is not None
        )
        output = created(tmp_path / str(bits), outline)
        arrays = {name: np.ones(512, dtype) for name, dtype in DTYPES.items()}
        arrays["features"] = rounded(noise, bits)
        feature_store.write_shard(output, 0, arrays)
        np.testing.assert_array_equal(feature_store.read_features(output, 0, 512), arrays["features"])
        sizes[bits] = (output.store / "features/c/0/0/0").stat().st_size
    assert sizes[23] < sizes[None]
    assert sizes[7] < sizes[None] / 2


# every float32 there is, and more often those around powers of two and the ones that are no numbers
WORDS = st.one_of(
    st.integers(0, 2**32 - 1),
    st.builds(
        lambda sign, exponent, mantissa: sign << 31 | exponent << 23 | mantissa,
        st.integers(0, 1),
        st.sampled_from([0, 1, 127, 254, 255]),
        st.one_of(st.integers(0, 8), st.integers(2**23 - 8, 2**23 - 1), st.integers(0, 22).map(lambda bit: 1 << bit)),
    ),
)


@settings(max_examples=300)
@given(st.lists(WORDS, min_size=1, max_size=20), st.integers(1, 23))
def test_rounding_is_to_the_nearest_of_the_mantissas_left(words: list[int], bits: int) -> None:
    values = np.array(words, np.uint32).view(np.float32)
    found = rounded(values, bits)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(values.view(np.uint32), words)
    number = np.isfinite(values)
    np.testing.assert_array_equal(found[~number], values[~number])
    np.testing.assert_array_equal(np.signbit(found[number]), np.signbit(values[number]))
    normal = number & (np.abs(values) >= np.finfo(np.float32).tiny) & np.isfinite(found)
    error = np.abs(found[normal].astype(np.float64) - values[normal])
    assert (error <= 2.0 ** -(bits + 1) * np.abs(values[normal].astype(np.float64))).all()
    # frexp's mantissa has the leading bit behind the point
    scaled = np.ldexp(np.frexp(found[normal])[0].astype(np.float64), bits + 1)
    np.testing.assert_array_equal(scaled, np.rint(scaled))
    np.testing.assert_array_equal(rounded(found, bits), found)


def test_rounding_half_way_goes_to_the_even_mantissa() -> None:
    values = np.array([1 + 1 / 8, 1 + 3 / 8, -1 - 3 / 8, 2 - 1 / 8, 1 + 3 / 16], np.float32)
    np.testing.assert_array_equal(rounded(values, 2), np.array([1, 1.5, -1.5, 2, 1.25], np.float32))


def test_without_bits_features_stay_the_array_they_are() -> None:
    values = np.array([1.1], np.float32)
    assert rounded(values, None) is values


def test_checksums_are_those_of_the_objects_written(tmp_path: Path) -> None:
    output = created(tmp_path)
    written = {index: feature_store.write_shard(output, index, arrays_of(index)) for index in range(3)}
    assert {index: feature_store.checksums(output, index) for index in range(3)} == written
    assert len({digest for checksums in written.values() for digest in checksums.values()}) > 9


@pytest.mark.parametrize("outline", [OUTLINE, COMPRESSED])
@pytest.mark.parametrize("name", DTYPES)
def test_one_flipped_bit_changes_one_checksum(tmp_path: Path, name: str, outline: Outline) -> None:
    output = filled(tmp_path, outline)
    before = feature_store.checksums(output, 1)
    path = tmp_path / "features.zarr" / name / ("c/1/0/0" if name == "features" else "c/1")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    after = feature_store.checksums(output, 1)
    assert [key for key in after if after[key] != before[key]] == [name]
    assert feature_store.checksums(output, 0) != after


def test_deleted_object_is_missing(tmp_path: Path) -> None:
    output = filled(tmp_path)
    (tmp_path / "features.zarr/label/c/2").unlink()
    checksums = feature_store.checksums(output, 2)
    assert [name for name, digest in checksums.items() if digest == "missing"] == ["label"]


def test_shards_can_be_written_in_any_order_and_again(tmp_path: Path) -> None:
    filled(tmp_path / "a")
    output = created(tmp_path / "b")
    for index in (2, 0, 1, 0):
        feature_store.write_shard(output, index, arrays_of(index))
    assert objects(tmp_path / "a") == objects(tmp_path / "b")


def test_read_features_gives_any_part(tmp_path: Path) -> None:
    output = filled(tmp_path)
    expected = np.concatenate([arrays_of(index)["features"] for index in range(3)])
    for start, stop in [(0, 10), (3, 5), (9, 10), (4, 4)]:
        found = feature_store.read_features(output, start, stop)
        np.testing.assert_array_equal(found, expected[start:stop])
        assert found.dtype == np.float32


def test_seal_writes_statistics_and_clears_what_killed_workers_left(tmp_path: Path) -> None:
    output = filled(tmp_path)
    leftover = tmp_path / "features.zarr/features/c/0/0/0.1234.partial"
    leftover.write_bytes(b"half")
    before = {name: feature_store.checksums(output, index)[name] for index in range(3) for name in DTYPES}
    feature_store.seal(output, np.array([1.5, -2.5]), np.array([0.5, 0.25]), 27)
    dataset = opened(output)
    np.testing.assert_array_equal(dataset["train_mean"], [1.5, -2.5])
    np.testing.assert_array_equal(dataset["train_std"], [0.5, 0.25])
    assert dataset["train_count"] == 27
    assert not leftover.exists()
    assert before == {name: feature_store.checksums(output, index)[name] for index in range(3) for name in DTYPES}


def test_statistics_are_unknown_before_the_seal(tmp_path: Path) -> None:
    dataset = opened(created(tmp_path))
    assert dataset["train_mean"].isnull().all()
    assert dataset["train_count"] == 0


def test_sealing_twice_is_sealing_once(tmp_path: Path) -> None:
    output = filled(tmp_path)
    feature_store.seal(output, np.zeros(2), np.ones(2), 1)
    before = objects(tmp_path)
    feature_store.seal(output, np.zeros(2), np.ones(2), 1)
    assert objects(tmp_path) == before


@pytest.mark.parametrize("outline", [OUTLINE, COMPRESSED])
def test_two_stores_of_the_same_content_have_equal_bytes(tmp_path: Path, outline: Outline) -> None:
    for name in ("a", "b"):
        feature_store.seal(filled(tmp_path / name, outline), np.zeros(2), np.ones(2), 1)
    assert objects(tmp_path / "a") == objects(tmp_path / "b")
    assert len(objects(tmp_path / "a")) > len(DTYPES) * 3


def test_store_behind_a_url_has_the_bytes_of_one_in_a_folder(tmp_path: Path, memory_url: str) -> None:
    here, there = filled(tmp_path), filled(memory_url)
    assert [feature_store.checksums(there, index) for index in range(3)] == [
        feature_store.checksums(here, i) for i in range(3)
    ]
    assert records.read_attributes(there) == ATTRIBUTES
    np.testing.assert_array_equal(feature_store.read_features(there, 0, 10), feature_store.read_features(here, 0, 10))
    feature_store.seal(there, np.zeros(2), np.ones(2), 1)
    for name, content in objects(tmp_path / "features.zarr").items():
        if not name.startswith("train_"):
            assert hashlib.sha256((there.store / name).read_bytes()).hexdigest() == content


def test_finished_shards_are_those_with_a_record(tmp_path: Path) -> None:
    output = created(tmp_path)
    assert set(records.recorded_shards(output).tolist()) == set()
    records.write_record(output, RECORD)
    (tmp_path / "shards" / ".00000003.json.77.partial").touch()
    assert set(records.recorded_shards(output).tolist()) == {2}
    assert records.read_record(output, 2) == RECORD


def test_finished_shards_behind_a_url(memory_url: str) -> None:
    output = OutputFolder.at(memory_url)
    assert set(records.recorded_shards(output).tolist()) == set()
    records.write_record(output, RECORD)
    assert set(records.recorded_shards(output).tolist()) == {2}
    assert records.read_record(output, 2) == RECORD


counts = st.integers(0, 2**40)
sums = st.lists(st.integers(-(2**80), 2**80), max_size=5).map(tuple)
outcomes = st.builds(
    RecordingOutcome,
    recording=counts,
    status=st.sampled_from(STATUSES),
    reason=st.text(),
    decoded_frames=counts,
    sequences_written=counts,
)


@given(
    st.builds(
        ShardRecord,
        index=counts,
        checksums=st.dictionaries(st.text(), st.text()),
        outcomes=st.lists(outcomes, max_size=4).map(tuple),
        train_count=counts,
        train_sum=sums,
        train_sum_squares=sums,
    )
)
def test_record_survives_json(record: ShardRecord) -> None:
    assert ShardRecord.model_validate_json(record.model_dump_json()) == record


@pytest.mark.parametrize(
    "change",
    [b"{", b"", b"[]", RECORD.model_dump_json().replace("ok", "fine").encode(), RECORD.model_dump_json()[:-3].encode(),
     RECORD.model_dump_json().replace('"index":2', '"index":2,"more":1').encode()],
)  # fmt: skip
def test_damaged_record_is_one_line(tmp_path: Path, change: bytes) -> None:
    output = created(tmp_path)
    records.write_record(output, RECORD)
    output.shard_record(2).write_bytes(change)
    with pytest.raises(PipelineError, match=r"00000002\.json is damaged \(.*\); run extract, which writes"):
        records.read_record(output, 2)
    assert records.find_record(output, 2) is None


def test_files_that_are_no_records_are_ignored(tmp_path: Path) -> None:
    output = created(tmp_path)
    records.write_record(output, RECORD)
    for name in ("notes.json", "00000003.json.bak", ".00000004.json.host.7.partial"):
        (tmp_path / "shards" / name).touch()
    assert set(records.recorded_shards(output).tolist()) == {2}


def with_attributes(output: OutputFolder, **changes: object) -> None:
    path = output.store / "zarr.json"
    content = json.loads(path.read_bytes())
    content["attributes"] |= changes
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("version", [1, SCHEMA_VERSION + 1, "2", None])
def test_store_of_another_schema_version_is_refused(tmp_path: Path, version: object) -> None:
    output = created(tmp_path)
    with_attributes(output, schema_version=version)
    message = rf"features\.zarr has schema version {version}, but this version of the pipeline needs 2; choose another"
    for opening in (lambda: records.read_attributes(output), lambda: StoreReader(str(output.store))):
        with pytest.raises(UsageError, match=message):
            opening()


def test_damaged_attributes_are_one_line_and_those_of_others_are_ignored(tmp_path: Path) -> None:
    output = created(tmp_path)
    with_attributes(output, title="a store with a name")
    assert records.read_attributes(output) == ATTRIBUTES
    with_attributes(output, config_hash=None)
    with pytest.raises(
        PipelineError, match=r"zarr\.json is damaged \(config_hash: .*\); run extract --repair, which makes"
    ):
        records.read_attributes(output)
    (output.store / "zarr.json").write_text("{")
    with pytest.raises(PipelineError, match=r"zarr\.json is damaged \(Invalid JSON: .*\); run extract --repair"):
        records.read_attributes(output)


@pytest.mark.parametrize("outline", [OUTLINE, COMPRESSED])
def test_opening_warns_of_nothing(tmp_path: Path, outline: Outline) -> None:
    output = filled(tmp_path, outline)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        opened(output).load()
    assert [str(warning.message) for warning in caught] == []
