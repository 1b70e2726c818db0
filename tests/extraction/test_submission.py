"""A plan of any length: its shards are submitted as workers become free, in memory that does not grow."""

import os

import numpy as np
import pandas as pd
import psutil
import pytest

from pipeline.config import PipelineConfig, StoreConfig
from pipeline.extraction.plan import Plan
from pipeline.extraction.segments import PendingTask
from pipeline.extraction.task_size import ASSUMED_SHARD_S, MIN_TASK_S, TaskSize
from pipeline.runtime.dask_executor import TASKS_PER_THREAD, DaskExecutor
from pipeline.runtime.executor import completed
from pipeline.runtime.profiles import load_profile
from pipeline.schema import MANIFEST_COLUMNS
from tests.support.manifests import plan_of

pytestmark = pytest.mark.slow

SHARDS = 1_000_000
SHARDS_PER_TASK = int(MIN_TASK_S / ASSUMED_SHARD_S)
RUN = 2_000
GROWTH_BYTES = 64 * 2**20  # all shards at once take some 10 KB each, 10 GB


def plan_of_a_million_shards() -> Plan:
    number = np.arange(SHARDS)
    table = pd.DataFrame(
        {
            "recording_id": pd.array(["recording.flac"] * SHARDS, "string"),
            "uri": pd.array(["/corpus/recording.flac"] * SHARDS, "string"),
            "member": pd.array([None] * SHARDS, "string"),
            "start_s": np.nan,
            "stop_s": np.nan,
            "label": np.where(number % 2, "de", "en"),
            "split": "train",
            "duration_s": 1.0,
            "sequences": 1,
            "size_bytes": 1,
            "first_sequence": number,
            "append_index": 0,
            "masked": pd.array([None] * SHARDS, "string"),
        }
    )
    table = table.reindex(columns=list(MANIFEST_COLUMNS))
    return plan_of(table, PipelineConfig(store=StoreConfig(sequences_per_chunk=1, chunks_per_shard=1)))


def numbers(batch: PendingTask) -> list[int]:
    """Stand in for extraction."""
    return list(batch.indices)


@pytest.mark.long
def test_a_million_shards_are_submitted_in_a_window_of_flat_memory() -> None:
    plan, process = plan_of_a_million_shards(), psutil.Process(os.getpid())
    assert len(plan) == SHARDS
    local = load_profile("local", None)
    # another test's dashboard may have the port, and Dask forgets to close the socket that it tried
    profile = local.model_copy(update={"kwargs": {**local.kwargs, "dashboard_address": "127.0.0.1:0"}})
    with DaskExecutor(profile, 2) as executor:
        results = executor.run(numbers, plan.tasks(np.arange(SHARDS), TaskSize(lambda: executor.threads).shards))
        finished = completed(results)
        done = next(finished).result
        scheduler = executor.session.client.cluster.scheduler  # it is in this process, as the driver is
        before = process.memory_info().rss
        for _ in range(RUN):
            done += next(finished).result
            assert len(scheduler.tasks) <= 2 * TASKS_PER_THREAD * executor.workers
        assert process.memory_info().rss - before < GROWTH_BYTES
        results.close()
    assert len(set(done)) == SHARDS_PER_TASK * (RUN + 1)
    assert max(done) < SHARDS_PER_TASK * (RUN + 3 * TASKS_PER_THREAD * executor.workers)
