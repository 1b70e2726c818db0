"""Stores that other programs have changed: their variables stay, and no finished work is lost."""

import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr

from pipeline.errors import PipelineError, UsageError
from pipeline.extraction import lifecycle, recording_reader
from tests.conftest import make_corpus
from tests.support.appending import CONFIG, check_contract, extracted, features_by_place, run, store_of
from tests.support.whole_system import store_bytes

pytestmark = [
    pytest.mark.slow,
    # xarray consolidates the metadata of a store that it has changed
    pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part:zarr.errors.ZarrUserWarning"),
]

FIRST = {"de": {"anna": 1, "bert": 1, "cara": 1}, "en": {"dave": 2}}
LATER = {"de": {"anna": 1}, "aa": {"x": 1}}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and the output of a run on it, whose last shard is not full."""
    place = tmp_path_factory.mktemp("first")
    run(make_corpus(place / "corpus", FIRST, seconds=0.75), place / "out")
    return place


@pytest.fixture
def corpus(first: Path, tmp_path: Path) -> Path:
    shutil.copytree(first / "out", tmp_path / "out")
    corpus = Path(shutil.copytree(first / "corpus", tmp_path / "corpus"))
    run(corpus, tmp_path / "out", "scan", "verify")
    return corpus


@pytest.fixture
def out(corpus: Path) -> Path:
    return corpus.parent / "out"


def energy_of(store: xr.Dataset) -> xr.DataArray:
    return store.features.isel(mfcc=0, drop=True).mean("timestep").rename("energy")


def add_energy(out: Path, *, keeps_attributes: bool) -> None:
    """Add a variable over `sequence` and one over `mfcc`."""
    with xr.open_zarr(out / "features.zarr", chunks=None) as store:
        added = energy_of(store).to_dataset().assign(weight=("mfcc", np.arange(13.0)))
        added.assign_attrs(store.attrs if keeps_attributes else {}).to_zarr(out / "features.zarr", mode="a")


def check_energy(out: Path, sequences: int | None = None) -> None:
    """Check that the added variables hold what was written, the first for the first `sequences`."""
    store = store_of(out)
    np.testing.assert_array_equal(store.energy[:sequences], energy_of(store)[:sequences])
    np.testing.assert_array_equal(store.weight, np.arange(13.0))


@pytest.fixture
def nothing_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording_reader, "read_blocks", None)


@pytest.mark.usefixtures("nothing_is_decoded")
def test_a_variable_added_with_the_attributes_changes_no_result(corpus: Path, out: Path) -> None:
    before = (out / "run.json").read_bytes()
    add_energy(out, keeps_attributes=True)
    record = run(corpus, out, "scan", "extract")
    assert not record.changed
    run(corpus, out, "verify")
    assert (out / "run.json").read_bytes() == before
    check_energy(out)


@pytest.mark.usefixtures("nothing_is_decoded")
@pytest.mark.parametrize("stages", [("extract",), ("scan", "extract")])
def test_attributes_that_another_program_removed_are_restored_and_nothing_is_computed(
    corpus: Path, out: Path, caplog: pytest.LogCaptureFixture, stages: tuple[str, ...]
) -> None:
    before = store_bytes(out)
    add_energy(out, keeps_attributes=False)
    with caplog.at_level(logging.WARNING, "pipeline"):
        run(corpus, out, *stages)
    assert "another program has changed or removed schema_version, config, config_hash and 3 more" in caplog.text
    after = store_bytes(out)
    assert {name: after[name] for name in before if name != "features.zarr/zarr.json"} == {
        name: before[name] for name in before if name != "features.zarr/zarr.json"
    }
    check_energy(out)
    run(corpus, out, "verify")


@pytest.mark.parametrize("stage", ["train", "compact", "report"])
def test_other_stages_name_what_was_removed_and_the_remedy(corpus: Path, out: Path, stage: str) -> None:
    if stage == "compact":
        make_corpus(corpus, LATER, seconds=0.85, extension="wav")
        run(corpus, out)
    add_energy(out, keeps_attributes=False)
    before = store_bytes(out)
    message = (
        r"features\.zarr: another program has changed or removed schema_version, config, config_hash and 3 more in "
        r"\S+zarr\.json; run extract, which restores them"
    )
    with pytest.raises(PipelineError, match=message):
        run(corpus, out, stage)
    assert store_bytes(out) == before


def test_a_store_that_was_lengthened_is_named_shard_by_shard_and_shortened_again(corpus: Path, out: Path) -> None:
    store = store_of(out)
    sequences = store.sizes["sequence"]
    store.isel(sequence=slice(0, 3)).drop_encoding().to_zarr(out / "features.zarr", append_dim="sequence")
    for _ in range(2):
        run(corpus, out, "extract")
        assert store_of(out).sizes["sequence"] == sequences
        with pytest.raises(PipelineError, match=r"4 files damaged or missing \(features\.zarr/features/c/\d+/0/0, "):
            run(corpus, out, "verify")


def test_an_array_that_was_overwritten_is_named_and_can_be_restored(corpus: Path, out: Path) -> None:
    before = store_bytes(out)
    zeros = np.zeros(store_of(out).sizes["sequence"], np.int64)
    zarr.open_group(out / "features.zarr", mode="r+").create_array("label", data=zeros, overwrite=True)
    run(corpus, out, "extract")  # restores the attributes alone
    assert zarr.open_array(out / "features.zarr", path="label").dtype == np.int64  # its objects fit no other type
    with pytest.raises(PipelineError, match=r"features\.zarr/label/zarr\.json, features\.zarr/label/c/\d"):
        run(corpus, out, "verify")
    run(corpus, out, "extract", repair=True)
    run(corpus, out, "verify")
    assert {name: content for name, content in store_bytes(out).items() if name in before} == before


@pytest.mark.parametrize("keeps_attributes", [True, False])
def test_added_variables_stay_when_the_store_is_extended_and_compacted(
    corpus: Path, out: Path, caplog: pytest.LogCaptureFixture, keeps_attributes: bool
) -> None:
    held, old = features_by_place(out), store_of(out).sizes["sequence"]
    add_energy(out, keeps_attributes=keeps_attributes)
    make_corpus(corpus, LATER, seconds=0.85, extension="wav")
    with caplog.at_level(logging.WARNING, "pipeline"):
        facts = extracted(run(corpus, out))
    assert f"energy in {out / 'features.zarr'}: no values for the new sequences" in caplog.text
    assert (facts.audio_s_new or 0) == pytest.approx(2 * 8 * 0.1)
    check_contract(out)
    check_energy(out, old)
    now = features_by_place(out)
    assert {place: now[place] for place in held} == held
    with xr.open_zarr(out / "features.zarr", chunks=None) as store:
        energy_of(store).to_dataset().assign_attrs(store.attrs).to_zarr(out / "features.zarr", mode="a")
    run(corpus, out, "compact", "verify")
    check_contract(out)
    check_energy(out)
    assert features_by_place(out) == now
    assert not run(corpus, out, "scan", "extract", "compact").changed


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (
            xr.Dataset({"turned": (("mfcc", "sequence"), np.zeros((13, 35)))}),
            "turned: the first dimension of an added",
        ),
        (None, "mine is a group, whose arrays cannot be moved; move this folder elsewhere"),
    ],
)
def test_compaction_names_what_it_cannot_move_and_leaves_everything(
    corpus: Path, out: Path, added: xr.Dataset | None, message: str
) -> None:
    make_corpus(corpus, LATER, seconds=0.85, extension="wav")
    if added is None:
        zarr.open_group(out / "features.zarr", mode="r+").create_group("mine")
    else:
        with xr.open_zarr(out / "features.zarr", chunks=None) as store:
            added.assign_attrs(store.attrs).to_zarr(out / "features.zarr", mode="a")
    run(corpus, out)
    before = store_bytes(out)
    with pytest.raises(UsageError, match=message):
        run(corpus, out, "compact")
    assert store_bytes(out) == before


@pytest.mark.usefixtures("nothing_is_decoded")
def test_attributes_and_their_copy_are_made_again_where_the_digest_proves_them(corpus: Path, out: Path) -> None:
    before = store_bytes(out)
    (out / "shards" / "_metadata").unlink()
    (out / "features.zarr" / "zarr.json").unlink()
    run(corpus, out, "extract")
    assert store_bytes(out) == before


def test_a_store_without_attributes_and_without_their_copy_is_left_as_it_is(
    corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "FEATURE_LIBRARIES", ("numpy",))  # other versions than those of the store
    add_energy(out, keeps_attributes=False)
    (out / "shards" / "_metadata").unlink()
    before = store_bytes(out)
    for stage in ("scan", "extract"):
        with pytest.raises(PipelineError, match=r"_metadata is damaged or missing; run extract --repair"):
            run(make_corpus(corpus, LATER, seconds=0.85), out, stage)
    assert store_bytes(out) == before
    run(corpus, out, "extract", repair=True)
    assert store_of(out).attrs["config_hash"] == CONFIG.config_hash


def test_a_copy_that_is_missing_is_written_by_the_next_extraction(corpus: Path, out: Path) -> None:
    before = store_bytes(out)
    (out / "shards" / "_metadata").unlink()
    run(corpus, out, "extract")
    assert store_bytes(out) == before


def test_a_store_that_was_deleted_is_extracted_again_and_the_log_says_so(
    corpus: Path, out: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = store_bytes(out)
    shutil.rmtree(out / "features.zarr")
    with caplog.at_level(logging.WARNING, "pipeline"):
        run(corpus, out)
    assert f"{out / 'features.zarr'} is not there any more: all shards are extracted again" in caplog.text
    assert store_bytes(out) == before
    assert pd.read_parquet(out / "ledger.parquet")["sequences_written"].sum() == store_of(out).valid.sum()
