"""Metadata that other programs change is found, and restored from the copy; what they add stays."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr

from model.data.store_reader import Store
from pipeline.errors import PipelineError
from pipeline.outputs import OutputFolder
from pipeline.schema import SEQUENCE_VARIABLES
from pipeline.store import metadata, records
from pipeline.store.records import StoreAttributes
from tests.support import model_stores

# xarray consolidates the metadata of a store that it has changed
pytestmark = pytest.mark.filterwarnings(
    "ignore:Consolidated metadata is currently not part:zarr.errors.ZarrUserWarning"
)

LABEL = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1]
ALL = list(StoreAttributes.model_fields)
VARIABLES = [variable.name for variable in SEQUENCE_VARIABLES]


@pytest.fixture
def output(tmp_path: Path) -> OutputFolder:
    return model_stores.write(tmp_path, {"train": [(0, 8)], "test": [(8, 11)]}, LABEL)


def changes(output: OutputFolder) -> list[str]:
    return [*metadata.changed_attributes(output), *metadata.changed_layouts(output)]


def documents(output: OutputFolder) -> dict[str, bytes]:
    """Return the zarr.json of the store and of each of its variables."""
    root = Path(str(output.store))
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("zarr.json")}


def add_energy(output: OutputFolder) -> None:
    """Add a variable as xarray does by default, which replaces all attributes of the store."""
    with xr.open_zarr(str(output.store), chunks=None) as dataset:
        energy = dataset.features.isel(mfcc=0, drop=True).mean("timestep").rename("energy")
        energy.to_dataset().to_zarr(str(output.store), mode="a")


def change(output: OutputFolder, edit: Callable[[zarr.Group], object]) -> None:
    """Change the store through zarr, and consolidate its metadata."""
    edit(zarr.open_group(str(output.store), mode="r+", use_consolidated=False))
    zarr.consolidate_metadata(str(output.store))


def overwrite_label(group: zarr.Group) -> None:
    group.create_array("label", data=np.arange(11), chunks=(11,), overwrite=True)


def without_consolidated(group: zarr.Group) -> None:
    path = Path(str(group.store.root)) / "zarr.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "consolidated_metadata": None}))


def test_a_store_that_nobody_has_changed_has_no_changes(output: OutputFolder) -> None:
    before = documents(output)
    assert changes(output) == []
    metadata.restore(output, VARIABLES)
    assert documents(output) == before


def test_attributes_that_xarray_has_removed_are_restored_and_its_variable_stays(output: OutputFolder) -> None:
    before = documents(output)
    add_energy(output)
    assert records.read_attributes(output) is None
    assert metadata.changed_attributes(output) == ALL
    metadata.restore(output, [])
    assert changes(output) == []
    after = documents(output)
    assert after.keys() - before.keys() == {"energy/zarr.json"}
    assert {name: after[name] for name in before if name != "zarr.json"} == {
        name: before[name] for name in before if name != "zarr.json"
    }
    with xr.open_zarr(str(output.store), chunks=None) as dataset:
        np.testing.assert_array_equal(dataset.energy, model_stores.numbered(11)[..., 0].mean(axis=1))
        assert list(dataset.attrs) == ALL
    assert Store(str(output.store)).label_counts("train").sum() == 8


@pytest.mark.parametrize(
    ("edit", "changed"),
    [
        (lambda group: group.attrs.put({}), ALL),
        (lambda group: group.attrs.pop("split_runs"), ["split_runs"]),
        (lambda group: group.attrs.update({"split_runs": {"train": [[0, 11]]}}), ["split_runs"]),
        (lambda group: group["label"].attrs.put({}), ["label.long_name", "label.flag_values", "label.flag_meanings"]),
        (lambda group: group["split"].attrs.update({"long_name": "parts"}), ["split.long_name"]),
        (lambda group: group["features"].resize((12, 4, 3)), ["features.shape"]),
        (overwrite_label, ["label.long_name", "label.data_type", "label.chunk_grid", "label.codecs"]),
    ],
)
def test_every_change_is_named_and_taken_back(
    output: OutputFolder, edit: Callable[[zarr.Group], object], changed: list[str]
) -> None:
    before = documents(output)
    change(output, edit)
    assert set(changed) <= set(changes(output))
    metadata.restore(output, VARIABLES)
    assert documents(output) == before


def test_a_layout_is_restored_only_where_it_is_asked_for(output: OutputFolder) -> None:
    change(output, overwrite_label)
    metadata.restore(output, ["features"])
    assert metadata.changed_attributes(output) == []
    assert {name.partition(".")[0] for name in metadata.changed_layouts(output)} == {"label"}
    np.testing.assert_array_equal(zarr.open_array(str(output.store), path="label")[:], np.arange(11))


@pytest.mark.parametrize("edit", [without_consolidated, lambda group: Path(group.store.root, "zarr.json").unlink()])
def test_a_store_without_consolidated_metadata_gets_it_again(
    output: OutputFolder, edit: Callable[[zarr.Group], object]
) -> None:
    before = documents(output)
    edit(zarr.open_group(str(output.store), mode="r+"))
    assert changes(output)
    metadata.restore(output, VARIABLES)
    assert documents(output) == before


def test_attributes_that_others_add_are_no_change_and_stay(output: OutputFolder) -> None:
    change(output, lambda group: (group.attrs.update({"title": "mine"}), group["label"].attrs.update({"note": "ok"})))
    assert changes(output) == []
    change(output, lambda group: (group.attrs.pop("config"), group["label"].attrs.pop("flag_meanings")))
    assert changes(output) == ["config", "label.flag_meanings"]
    metadata.restore(output, [])
    with xr.open_zarr(str(output.store), chunks=None) as dataset:
        assert dataset.attrs["title"] == "mine"
        assert dataset["label"].attrs["note"] == "ok"


def test_the_copy_is_strict_json_and_a_damaged_one_is_one_line(output: OutputFolder) -> None:
    json.loads(output.metadata.read_bytes(), parse_constant=pytest.fail)
    output.metadata.write_bytes(b"{")
    with pytest.raises(
        PipelineError, match=r"_metadata is damaged \(.*\); run extract --repair, which makes it again"
    ):
        metadata.changed_attributes(output)
