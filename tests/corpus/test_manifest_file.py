"""The manifest as a file: bounds that its statistics give, rows by number, and another state of it."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from upath import UPath

from pipeline.config import PipelineConfig, StoreConfig
from pipeline.corpus.manifest_file import COLUMNS, ManifestFile
from pipeline.errors import PipelineError
from pipeline.extraction.plan import Plan
from pipeline.outputs import OutputFolder
from tests.conftest import make_manifest, make_probe
from tests.support.manifests import plan_of, write_manifest

CONFIG = PipelineConfig(store=StoreConfig(timesteps=10, sequences_per_chunk=4, chunks_per_shard=2))


@pytest.fixture
def table() -> pd.DataFrame:
    probes = [make_probe(f"{label}/{i}/{i}.wav", 16_000 + 1000 * i) for i in range(10) for label in ("de", "en")]
    return make_manifest(probes, CONFIG)


def test_rows_are_those_of_the_table_and_within_the_bounds_of_their_group(table: pd.DataFrame) -> None:
    table.loc[7, "masked"] = "gone from the corpus"
    file = ManifestFile.of(table, 6)
    assert len(file) == len(table)
    assert [group.first_row for group in file.groups] == [0, 6, 12, 18]
    read = [file.read(number) for number in range(len(file.groups))]
    pd.testing.assert_frame_equal(pd.concat(read), table[list(COLUMNS)])
    for group, rows in zip(file.groups, read, strict=True):
        stops = rows["first_sequence"] + rows["sequences"]
        assert group.start == rows["first_sequence"].min()
        assert group.stop >= stops.max()
        assert group.most_sequences == rows["sequences"].max()
        assert (group.first_append, group.last_append, group.has_parts) == (0, 0, False)
        assert group.has_masked == (7 in rows.index)
    assert file.sequences == table["sequences"].sum()


def test_file_without_statistics_gives_the_same_plan(table: pd.DataFrame, tmp_path: Path) -> None:
    path = UPath(str(tmp_path / "manifest.parquet"))
    table.to_parquet(str(path), row_group_size=3, write_statistics=False)
    file = ManifestFile.at(path)
    assert file.sequences == table["sequences"].sum()
    assert list(Plan(file, file.label_names(), CONFIG)) == list(plan_of(table, CONFIG))


def test_worker_with_another_manifest_than_the_driver_refuses_the_task(table: pd.DataFrame, tmp_path: Path) -> None:
    output = OutputFolder.at(str(tmp_path))
    write_manifest(output, table)
    shared = Plan.at(output, CONFIG).shared(output)
    assert list(shared.open()) == list(plan_of(table, CONFIG))
    table.loc[np.flatnonzero(table["sequences"])[-1], "masked"] = "gone from the corpus"
    write_manifest(output, table)
    again = Plan.at(output, CONFIG).shared(output)
    assert again.fingerprint != shared.fingerprint
    assert again.open()[len(again.open()) - 1].segments[-1].masked
    with pytest.raises(
        PipelineError, match=r"manifest\.parquet is not the same file on this worker as for the driver"
    ):
        shared.open()


def test_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.parquet").write_bytes(b"PAR1 and no table")
    with pytest.raises(PipelineError, match=r"manifest\.parquet is damaged \(.*\); restore it from a backup"):
        ManifestFile.at(UPath(str(tmp_path / "manifest.parquet")))
    with pytest.raises(FileNotFoundError):
        ManifestFile.at(UPath(str(tmp_path / "none.parquet")))
