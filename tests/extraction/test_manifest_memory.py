"""Memory: an extraction holds a few row groups of the manifest, however many recordings there are."""

import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.config import PipelineConfig
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.durable_files import write_parquet_groups
from pipeline.extraction import ledger, lifecycle
from pipeline.extraction.plan import Plan
from pipeline.outputs import OutputFolder
from tests.support.manifests import simple, write_manifest

RECORDINGS = 200_000
TABLE_BYTES = RECORDINGS * 200
"""What the rows of the manifest take in memory at the least: names and paths have a hundred characters."""
HELD_BYTES = 16 * 2**20
"""A few row groups of 16,384 rows, and the 9 bytes of each recording that the ledger takes meanwhile."""


@pytest.fixture
def output(tmp_path: Path) -> OutputFolder:
    row = np.arange(RECORDINGS)
    table = simple({"de": ["a"]}).loc[[0] * RECORDINGS].reset_index(drop=True)
    names = pd.Series([f"de/{number:0100d}.wav" for number in row], dtype="string")
    table = table.assign(
        recording_id=names, uri="/corpus/" + names, split=np.sort(np.array(["test", "train"])[row % 2])[::-1],
        first_sequence=np.cumsum(table["sequences"]) - table["sequences"],
    )  # fmt: skip
    output = OutputFolder.at(str(tmp_path))
    write_manifest(output, table)
    return output


def test_outline_and_ledger_hold_a_few_row_groups(output: OutputFolder) -> None:
    config = PipelineConfig()
    tracemalloc.start()
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    try:
        manifest = ManifestFile.at(output.manifest)
        assert len(manifest.groups) > 10
        outline = lifecycle.outline(manifest, Plan.of(manifest, config))
        lifecycle.check_room(output, manifest, Plan.of(manifest, config))
        with ledger.building(manifest, [], config, output.root) as rows:
            write_parquet_groups(output.ledger, rows)
        assert ledger.counts(output)["ok"] == RECORDINGS
        assert ledger.matches(output, manifest, [], config)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(default)
    assert [len(runs) for runs in outline.attributes["split_runs"].values()] == [1, 1]
    assert peak_bytes + pool.max_memory() < HELD_BYTES < TABLE_BYTES
