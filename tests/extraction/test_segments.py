"""Segments of long files: one decoding for thousands of them, and the features of each segment alone."""

import itertools
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import xarray as xr

from pipeline.config import PipelineConfig, StoreConfig
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.errors import PipelineError
from pipeline.extraction import lifecycle
from pipeline.extraction.pending import find_pending
from pipeline.extraction.plan import MIN_SHARDS_OF_A_LONG_FILE, Plan
from pipeline.extraction.segments import Task
from pipeline.extraction.task import ShardSummary, run_task
from pipeline.features import audio, sound_stream
from pipeline.features.audio_source import AudioSource
from pipeline.features.mfcc import Mfcc
from pipeline.outputs import OutputFolder
from pipeline.store import feature_store, records
from tests.support.manifests import plan_of
from tests.support.scans import scanned
from tests.support.segments import (
    Row,
    opened_files,
    random_rows,
    use_segments,
    write_long_file,
    write_table,
)

CONFIG = PipelineConfig(
    features=Mfcc(n_mels=40, n_mfcc=13), store=StoreConfig(timesteps=10, sequences_per_chunk=32, chunks_per_shard=4)
)
SECONDS = 120
SEGMENTS = 1000
FILES = {"long.wav": ("de", 16_000), "other.flac": ("en", 22_050)}


@dataclass
class Work:
    """A scanned corpus and its store."""

    output: OutputFolder
    manifest: pd.DataFrame
    plan: Plan

    def run(self, tasks: Iterable[Task]) -> list[ShardSummary]:
        """Run tasks one after the other."""
        return list(itertools.chain.from_iterable(
            run_task(task, out=str(self.output.root), config=CONFIG) for task in tasks
        ))  # fmt: skip

    def pending(self) -> list[Task]:
        """Return the tasks that are left."""
        pending = find_pending(self.output, self.plan).shards
        return list(map(self.plan.task, self.plan.tasks(pending, lambda _: 4)))

    def checksums(self) -> list[records.ShardRecord]:
        return [records.read_record(self.output, index) for index in range(len(self.plan))]


def prepared(corpus: Path, out: Path) -> Work:
    output = OutputFolder.at(str(out))
    manifest = scanned(corpus, output, CONFIG)
    plan = plan_of(manifest, CONFIG)
    lifecycle.open_store(output, ManifestFile.of(manifest), plan)
    return Work(output, manifest, plan)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two long files with 500 segments each, of three speakers who take turns."""
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for name, (label, sample_rate_hz) in FILES.items():
        write_long_file(folder / name, SECONDS, sample_rate_hz)
        rows += random_rows(name, label, SECONDS, SEGMENTS // 2, [f"{label}-{i}" for i in range(3)])
    write_table(folder, rows)
    return folder


@pytest.fixture(autouse=True)
def layout(monkeypatch: pytest.MonkeyPatch) -> None:
    use_segments(monkeypatch)


def test_a_file_is_opened_once_by_the_scan_and_once_per_split_by_extraction(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = opened_files(monkeypatch)
    work = prepared(corpus, tmp_path)
    assert len(work.manifest) > 0.99 * SEGMENTS
    assert Counter(opened) == {str(corpus / name): 1 for name in FILES}
    opened.clear()
    summaries = work.run(work.pending())
    assert sum(summary.sequences for summary in summaries) == work.plan.sequences
    assert len(work.plan) > 6 * MIN_SHARDS_OF_A_LONG_FILE
    # within a split one task decodes a file, and a second where the file begins in a shard of the one before
    assert work.manifest["split"].nunique() == 3
    assert all(3 <= count <= 6 for count in Counter(opened).values())
    sizes = {str(corpus / name): (corpus / name).stat().st_size for name in FILES}
    assert sum(summary.bytes_read for summary in summaries) == sum(sizes[path] for path in opened)


def test_features_are_those_of_each_segment_cut_out_and_extracted_alone(corpus: Path, tmp_path: Path) -> None:
    work = prepared(corpus, tmp_path / "out")
    work.run(work.pending())
    store = xr.open_zarr(str(work.output.store), chunks=None).load()
    assert store["valid"].all()
    features = store["features"].to_numpy()
    for name, (_, sample_rate_hz) in FILES.items():
        samples, _ = soundfile.read(corpus / name, dtype="float32")
        for row in work.manifest[work.manifest["uri"] == str(corpus / name)].itertuples():
            cut = samples[int(row.start_s * sample_rate_hz) :][: int((row.stop_s - row.start_s) * sample_rate_hz)]
            soundfile.write(tmp_path / "cut.wav", cut, sample_rate_hz, subtype="FLOAT")
            expected = CONFIG.features.extract([audio.read(AudioSource(str(tmp_path / "cut.wav")), 16_000)]).values
            assert len(expected) == row.frames
            found = features[row.first_sequence : row.first_sequence + row.sequences]
            np.testing.assert_array_equal(found.reshape(-1, 13), expected[: 10 * row.sequences])


@pytest.mark.slow
def test_bytes_do_not_depend_on_tasks_workers_or_interruptions(corpus: Path, tmp_path: Path) -> None:
    serial, single, workers, resumed = (prepared(corpus, tmp_path / name) for name in ("1", "2", "3", "4"))
    serial.run(serial.pending())
    expected = serial.checksums()
    single.run(Task((shard,)) for shard in reversed(list(single.plan)[::5]))  # begins within files
    single.run(single.pending())
    assert single.checksums() == expected
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda task: workers.run([task]), workers.pending()))
    assert workers.checksums() == expected
    task = max(resumed.pending(), key=lambda task: len(task.shards))
    third = task.shards[2]
    place = Path(str(resumed.output.store)) / f"features/c/{third.index}/0/0"
    place.mkdir(parents=True)  # where a file has to be
    with pytest.raises(PipelineError, match=rf"^{third!s}".replace("(", r"\(").replace(")", r"\)")):
        resumed.run([task])
    place.rmdir()
    assert set(records.recorded_shards(resumed.output).tolist()) == {shard.index for shard in task.shards[:2]}
    resumed.run(resumed.pending())
    assert resumed.checksums() == expected


def test_damage_in_a_file_fails_the_same_segments_however_they_are_grouped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sound_stream, "BLOCK_S", 1.0)
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = []
    for name, label in (("a.flac", "de"), ("b.flac", "en")):
        write_long_file(corpus / name, 40, 16_000)
        rows += random_rows(name, label, 40, 60, [None])
    write_table(corpus, rows)
    content = bytearray((corpus / "a.flac").read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    (corpus / "a.flac").write_bytes(content)
    together, alone = prepared(corpus, tmp_path / "together"), prepared(corpus, tmp_path / "alone")
    summaries = together.run(together.pending())
    alone.run(Task((shard,)) for shard in alone.plan)
    assert together.checksums() == alone.checksums()
    failed = together.manifest["recording_id"].iloc[
        [o.recording for record in together.checksums() for o in record.outcomes if o.status == "failed"]
    ]
    assert sum(summary.failed for summary in summaries) == len(failed)
    assert failed.str.startswith("a.flac").all()
    assert 20 < failed.nunique() < 45


def test_segments_of_a_file_without_a_speaker_are_in_one_split(tmp_path: Path) -> None:
    rows = []
    for name, label in (("a.wav", "de"), ("b.wav", "en"), ("c.wav", "de"), ("d.wav", "en")):
        write_long_file(tmp_path / name, 10, 16_000)
        rows += random_rows(name, label, 10, 20, [None])
    write_table(tmp_path, rows)
    manifest = prepared(tmp_path, tmp_path / "out").manifest
    assert (manifest.groupby("uri")["split"].nunique() == 1).all()
    assert manifest.groupby("label")["split"].nunique().tolist() == [2, 2]


def test_long_segments_that_overlap_by_more_than_is_held_have_their_own_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sound_stream, "BLOCK_S", 1.0)
    monkeypatch.setattr(audio, "HELD_SAMPLES", 16_000)
    write_long_file(tmp_path / "a.wav", 60, 16_000)
    write_long_file(tmp_path / "b.wav", 60, 16_000)
    # the first two fill several shards, and are therefore read for their peak first
    spans = [(0.0, 45.0), (5.0, 50.0), (6.0, 9.0), (6.5, 55.0), (8.5, 9.5)]
    write_table(tmp_path, [Row(name, *span, label, None) for name, label in (("a.wav", "de"), ("b.wav", "en"))
                           for span in spans])  # fmt: skip
    work = prepared(tmp_path, tmp_path / "out")
    work.run(work.pending())
    for row in work.manifest.itertuples():
        source = AudioSource(row.uri, None, row.start_s, row.stop_s)
        expected = CONFIG.features.extract([audio.read(source, 16_000)]).values[: 10 * row.sequences]
        found = feature_store.read_features(work.output, row.first_sequence, row.first_sequence + row.sequences)
        np.testing.assert_array_equal(found.reshape(-1, 13), expected)
