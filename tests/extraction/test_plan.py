"""The plan: its shards tile the store, its segments stay within recordings, and it depends on nothing else."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from pipeline import durable_files
from pipeline.config import PipelineConfig, StoreConfig
from pipeline.corpus.manifest import label_names
from pipeline.extraction.plan import projected_bytes
from pipeline.extraction.segments import PendingTask, Segment, Shard, frames_of
from pipeline.features.audio_source import AudioSource
from pipeline.schema import SPLITS
from tests.conftest import make_manifest, make_probe
from tests.support.manifests import plan_of, read_table


def configuration(timesteps: int = 20, chunk: int = 4, chunks: int = 2) -> PipelineConfig:
    return PipelineConfig(store=StoreConfig(timesteps=timesteps, sequences_per_chunk=chunk, chunks_per_shard=chunks))


configs = st.builds(configuration, st.integers(1, 60), st.integers(1, 9), st.integers(1, 4))
# samples of the recordings: too short for a sequence, usual, much longer than a shard
lengths = st.lists(st.one_of(st.integers(0, 4000), st.integers(4000, 40_000), st.integers(10**5, 10**6)), max_size=25)


def table_of(samples: list[int], config: PipelineConfig) -> pd.DataFrame:
    """Manifest of recordings in two languages; one is sure to be usable in each."""
    found = [*samples, 20_000, 20_000]
    return make_manifest(
        [make_probe(f"{'de' if i % 2 else 'en'}/{i % 7}/{i}.wav", n) for i, n in enumerate(found)], config
    )


@given(lengths, configs)
def test_segments_tile_the_store_once_and_in_order(samples: list[int], config: PipelineConfig) -> None:
    table = table_of(samples, config)
    plan = plan_of(table, config)
    position = 0
    for index, shard in enumerate(plan):
        assert (shard.index, shard.start) == (index, position)
        assert 0 < shard.stop - shard.start <= config.store.sequences_per_shard
        for segment in shard.segments:
            assert shard.start + segment.place == position
            row = table.loc[segment.recording]
            assert position == row["first_sequence"] + segment.first
            assert segment.count > 0
            position += segment.count
        assert position == shard.stop
    assert position == plan.sequences == table["sequences"].sum()


@given(lengths, configs)
def test_no_segment_leaves_its_recording(samples: list[int], config: PipelineConfig) -> None:
    table = table_of(samples, config)
    names = label_names(table)
    for shard in plan_of(table, config):
        for segment in shard.segments:
            row = table.loc[segment.recording]
            start, stop = frames_of(segment, config.store.timesteps)
            assert 0 <= start < stop <= row["frames"]
            assert stop - start == segment.count * config.store.timesteps
            assert (segment.source.container, names[segment.label], SPLITS[segment.split]) == (
                row["uri"],
                row["label"],
                row["split"],
            )


@given(lengths, configs)
def test_all_shards_but_the_last_are_full(samples: list[int], config: PipelineConfig) -> None:
    shards = list(plan_of(table_of(samples, config), config))
    assert {shard.stop - shard.start for shard in shards[:-1]} <= {config.store.sequences_per_shard}


@given(lengths, configs)
def test_shards_are_the_same_in_any_order_and_every_time(samples: list[int], config: PipelineConfig) -> None:
    table = table_of(samples, config)
    plan = plan_of(table, config)
    expected = list(plan)
    assert [plan[index] for index in reversed(range(len(plan)))] == expected[::-1]
    assert list(plan_of(table_of(samples, config), config)) == expected


def test_plan_of_a_manifest_read_back_is_the_same(tmp_path: Path) -> None:
    config, path = configuration(), UPath(str(tmp_path / "manifest.parquet"))
    table = table_of([5000, 90_000, 300], config)
    durable_files.write_parquet(path, table)
    assert list(plan_of(read_table(path), config)) == list(plan_of(table, config))


def test_sequences_do_not_move_when_shards_have_another_size() -> None:
    table = table_of([5000, 90_000, 300, 64_000], configuration())

    def places(config: PipelineConfig) -> list[tuple[int, int]]:
        segments = [segment for shard in plan_of(table, config) for segment in shard.segments]
        return [(s.recording, s.first + i) for s in segments for i in range(s.count)]

    assert places(configuration(chunk=1, chunks=1)) == places(configuration(chunk=100, chunks=3))


def test_recording_longer_than_many_shards_is_cut_at_their_ends() -> None:
    config = configuration(timesteps=10, chunk=5, chunks=2)
    # 10 h, 10 min: 3,600,000 frames and one for the end, 10 each; and two short ones
    table = make_manifest(
        [make_probe("de/a/0.wav", 36_000 * 16_000), make_probe("de/b/0.wav"), make_probe("en/c/0.wav")], config
    )
    row = int(table.index[table["recording_id"] == "de/a/0.wav"][0])
    plan = plan_of(table, config)
    segments = [segment for shard in plan for segment in shard.segments if segment.recording == row]
    assert sum(segment.count for segment in segments) == 360_000
    assert [segment.first for segment in segments[1:]] == [s.first + s.count for s in segments[:-1]]
    assert {segment.count for segment in segments[1:-1]} == {10}
    assert len(plan) == 36_002


def test_recordings_without_a_sequence_are_in_no_shard() -> None:
    config = configuration()
    table = table_of([100, 100, 40_000, 0], config)
    used = {segment.recording for shard in plan_of(table, config) for segment in shard.segments}
    assert used == set(table.index[table["sequences"] > 0])
    assert len(used) < len(table)


def test_shard_past_either_end_is_an_index_error() -> None:
    plan = plan_of(table_of([16_000] * 4, configuration()), configuration())
    # six recordings of 5 or 6 sequences in shards of 8
    assert len(plan) == 4
    for index in (-1, 4, 10**9):
        with pytest.raises(IndexError, match=rf"^shard {index}: the plan has 4$"):
            plan[index]


def test_shard_names_itself() -> None:
    assert str(Shard(7, 28, 32, ())) == "shard 7 (sequences 28 to 32)"


def test_units_of_work_can_be_keys() -> None:
    segment = Segment(
        recording=0, recording_id="a", source=AudioSource("a"), size_bytes=9, duration_s=1.0, label=0, split=0,
        first=0, count=2, place=0,
    )  # fmt: skip
    assert len({Shard(0, 0, 2, (segment,)), Shard(0, 0, 2, (segment,)), Shard(1, 2, 4, (segment,))}) == 2


def test_duration_is_that_of_the_frames_stored() -> None:
    config = configuration(timesteps=20)
    plan = plan_of(table_of([], config), config)
    assert plan.duration_s(8) == pytest.approx(8 * 20 * 0.010)


@given(st.integers(1, 1000), st.integers(1, 50))
def test_projected_memory_grows_with_the_shard(chunk: int, chunks: int) -> None:
    smaller, larger = configuration(chunk=chunk, chunks=chunks), configuration(chunk=chunk, chunks=chunks + 1)
    features = 4 * larger.store.sequences_per_shard * larger.store.timesteps * larger.features.n_mfcc
    assert projected_bytes(smaller) < projected_bytes(larger)
    assert projected_bytes(larger) > 2 * features


def test_default_shard_fits_a_worker_of_one_gibibyte() -> None:
    assert projected_bytes(PipelineConfig()) < 2**30 - 300 * 2**20


@given(lengths, configs, st.integers(1, 5), st.data())
def test_tasks_hold_each_pending_shard_once_and_a_long_recording_is_read_by_few(
    samples: list[int], config: PipelineConfig, size: int, data: st.DataObject
) -> None:
    plan = plan_of(table_of(samples, config), config)
    pending = np.array(sorted(data.draw(st.sets(st.sampled_from(range(len(plan)))))), np.int64)
    batches = [plan.task(batch).shards for batch in plan.tasks(pending, lambda _: size)]
    assert sorted(shard.index for batch in batches for shard in batch) == pending.tolist()
    for batch in batches:
        assert [shard.index for shard in batch] == list(range(batch[0].index, batch[-1].index + 1))
        # what makes them one task: a recording that goes through all of them, or that there is much to do
        held = [{segment.recording for segment in shard.segments} for shard in batch]
        shared = set.intersection(*held) == {batch[0].segments[-1].recording}
        assert len(batch) <= size or shared
    whole = [plan.task(batch).shards for batch in plan.tasks(np.arange(len(plan)), lambda _: size)]
    for recording in {segment.recording for shard in plan for segment in shard.segments}:
        tasks = [batch for batch in whole if any(s.recording == recording for shard in batch for s in shard.segments)]
        # its own, that of the recording before it, and that of a short one which ends where it begins
        assert len(tasks) <= 2


def test_size_of_a_task_follows_the_shards_that_are_left() -> None:
    config = configuration()
    plan = plan_of(table_of([1_600 * 16 - 1] * 99, config), config)  # 8 sequences each, as a shard has
    left_when_asked: list[int] = []

    def half(left: int) -> int:
        left_when_asked.append(left)
        return -(-left // 2)

    pending = np.array([0, 1, 3, *range(5, 40)])
    tasks = list(plan.tasks(pending, half, np.isin(np.arange(len(plan)), [3, 6, 50])))
    assert [len(task.indices) for task in tasks] == [2, 1, 18, 9, 4, 2, 1, 1]
    assert left_when_asked == [38, 36, 35, 17, 8, 4, 2, 1]
    assert [sorted(task.replaced) for task in tasks[:4]] == [[], [3], [6], []]


def test_batch_names_its_shards() -> None:
    plan = plan_of(table_of([160_000], configuration()), configuration())
    assert str(plan[0]) == "shard 0 (sequences 0 to 8)"
    assert str(PendingTask((0,))) == "shard 0"
    assert str(PendingTask((0, 1, 7))) == "shards 0 to 7"
