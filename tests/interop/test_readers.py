"""Other implementations of Zarr read the store: every array has the values that zarr-python reads."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numpy.typing import NDArray

from tests.support import model_stores

pytestmark = pytest.mark.long


@pytest.fixture(scope="module", params=[None, 20], ids=["plain", "rounded"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of 50 sequences; the last shard is not full."""
    runs = {"train": [(0, 40)], "test": [(40, 50)]}
    valid = np.arange(50) % 7 > 0
    folder = tmp_path_factory.mktemp("store")
    output = model_stores.write(folder, runs, np.arange(50) % 3, valid=valid, mantissa_bits=request.param)
    return str(output.store)


def arrays_of(store: str) -> Iterator[tuple[str, NDArray[Any], tuple[str, ...]]]:
    """Yield name, values and dimensions of each array, as zarr-python reads them."""
    for name, array in sorted(zarr.open_group(store, mode="r").arrays()):
        yield name, np.asarray(array[...]), array.metadata.dimension_names or ()


@pytest.mark.parametrize("driver", ["zarr3", "auto"])
def test_tensorstore_reads_every_array(store: str, driver: str) -> None:
    tensorstore = pytest.importorskip("tensorstore", reason="the environment of make test-interop has it")
    for name, values, dimensions in arrays_of(store):
        place = {"driver": "file", "path": str(Path(store) / name) + "/"}
        array = tensorstore.open({"driver": driver, "kvstore": place}, open=True).result()
        found = np.asarray(array.read().result())
        assert (found.dtype, array.domain.labels) == (values.dtype, dimensions)
        np.testing.assert_array_equal(found, values)


def test_zarrs_reads_every_array(store: str) -> None:
    pytest.importorskip("zarrs", reason="the environment of make test-interop has it")
    expected = list(arrays_of(store))
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        for (name, values, _), (_, found, _) in zip(expected, arrays_of(store), strict=True):
            np.testing.assert_array_equal(found, values, err_msg=name)
        features = zarr.open_array(store, path="features", mode="r")
        np.testing.assert_array_equal(features[3:47:5], next(v for n, v, _ in expected if n == "features")[3:47:5])
