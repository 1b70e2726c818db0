"""Memory: an extraction holds a few row groups of the manifest, however many recordings there are."""

import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from pipeline.config import PipelineConfig
from pipeline.corpus.manifest import ROWS_PER_GROUP
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.durable_files import write_parquet_groups
from pipeline.extraction import ledger, lifecycle
from pipeline.extraction.outcomes import Outcomes
from pipeline.extraction.plan import Plan
from pipeline.outputs import OutputFolder
from tests.support.manifests import simple, write_manifest

RECORDINGS = 200_000
TABLE_BYTES = RECORDINGS * 200
"""What the rows of the manifest take in memory at the least: names and paths have a hundred characters."""
HELD_BYTES = 16 * 2**20
"""A few row groups of 16,384 rows, and the 9 bytes of each recording that the ledger takes meanwhile."""
FAILED = 2**16
REASON_BYTES = 400
"""What a text of 115 characters takes as the value of a dictionary, with its number and shard."""
GROUP_BYTES = ROWS_PER_GROUP * REASON_BYTES


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


@contextmanager
def held_bytes() -> Iterator[Callable[[], int]]:
    """Yield the function that returns the most memory that Python and Arrow have taken in the context."""
    tracemalloc.start()
    default = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(default)
    pa.set_memory_pool(pool)
    try:
        yield lambda: tracemalloc.get_traced_memory()[1] + (pool.max_memory() or 0)
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(default)


def test_outline_and_ledger_hold_a_few_row_groups(output: OutputFolder) -> None:
    config = PipelineConfig()
    with held_bytes() as peak_bytes:
        manifest = ManifestFile.at(output.manifest)
        assert len(manifest.groups) > 10
        outline = lifecycle.outline(manifest, Plan.of(manifest, config))
        lifecycle.check_room(output, manifest, Plan.of(manifest, config))
        with ledger.building(manifest, [], config, output.root) as rows:
            write_parquet_groups(output.ledger, rows)
        assert ledger.counts(output)["ok"] == RECORDINGS
        assert ledger.matches(output, manifest, [], config)
        assert peak_bytes() < HELD_BYTES < TABLE_BYTES
    assert [len(runs) for runs in outline.attributes["split_runs"].values()] == [1, 1]


def failures() -> Iterator[Outcomes]:
    """The first recordings fail, each with a reason of its own."""
    for first in range(0, FAILED, 2**12):
        row = np.arange(first, first + 2**12)
        nothing = np.zeros_like(row)
        status, reason = np.full(len(row), ledger.FAILED, np.int8), np.arange(1, len(row) + 1, dtype=np.int32)
        reasons = ("", *(f"cannot be read: {number:0>99}" for number in row.tolist()))
        yield Outcomes(row, row, status, reason, nothing, nothing, reasons)


def test_reasons_of_failures_are_not_held(output: OutputFolder) -> None:
    manifest = ManifestFile.at(output.manifest)
    with held_bytes() as peak_bytes, ledger.building(manifest, failures(), PipelineConfig(), output.root) as rows:
        write_parquet_groups(output.ledger, rows)
        assert peak_bytes() < HELD_BYTES + GROUP_BYTES < FAILED * REASON_BYTES
    assert ledger.failed_rows(output).tolist() == list(range(FAILED))
