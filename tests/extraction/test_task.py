"""The task: real recordings into a real store, good ones and bad ones, and the same bytes whoever does it."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import xarray as xr

from pipeline.config import PipelineConfig, StoreConfig
from pipeline.corpus.manifest import label_names
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.errors import PipelineError, UsageError
from pipeline.extraction import lifecycle, task
from pipeline.extraction.plan import Plan
from pipeline.extraction.segments import Task
from pipeline.extraction.task import ShardSummary, run_task
from pipeline.features.audio import read
from pipeline.features.audio_source import AudioSource
from pipeline.features.mfcc import Mfcc
from pipeline.outputs import OutputFolder
from pipeline.schema import SEQUENCE_VARIABLES, SPLITS
from pipeline.store import feature_store, records
from pipeline.store.records import RecordingOutcome, ShardRecord
from tests.conftest import make_corpus, noise
from tests.support.manifests import plan_of
from tests.support.scans import scanned
from tests.support.segments import opened_files

SPEAKERS = {"de": {"anna": 2, "bert": 1, "cara": 1}, "en": {"dora": 1, "emil": 1, "fay": 1}}


def configuration(chunks_per_shard: int = 2) -> PipelineConfig:
    """Shards of 8 sequences of 10 frames; a recording of a second has 10."""
    return PipelineConfig(
        features=Mfcc(n_mels=40, n_mfcc=13),
        store=StoreConfig(timesteps=10, sequences_per_chunk=4, chunks_per_shard=chunks_per_shard),
    )


@dataclass
class Work:
    """A scanned corpus and its empty store."""

    output: OutputFolder
    table: pd.DataFrame
    plan: Plan
    _read: list[xr.Dataset] = field(default_factory=list)

    def extract(self, *indices: int) -> list[ShardSummary]:
        """RecordingFeatures some shards, or all."""
        self._read.clear()
        chosen = indices or range(len(self.plan))
        batches = (Task((self.plan[i],)) for i in chosen)
        return [run_task(batch, out=str(self.output.root), config=self.plan.config)[0] for batch in batches]

    def records(self) -> list[ShardRecord]:
        return [records.read_record(self.output, index) for index in range(len(self.plan))]

    def outcomes(self, name: str) -> list[RecordingOutcome]:
        """What the shards say of a recording."""
        return [o for r in self.records() for o in r.outcomes if o.recording == self.row(name)]

    def row(self, name: str) -> int:
        return int(self.table.index[self.table["recording_id"] == name][0])

    def dataset(self) -> xr.Dataset:
        """The whole store, read once after each extraction."""
        if not self._read:
            self._read.append(xr.open_zarr(str(self.output.store), chunks=None).load())
        return self._read[0]

    def sequences(self, name: str) -> xr.Dataset:
        """The sequences of one recording."""
        dataset = self.dataset()
        return dataset.isel(sequence=np.flatnonzero(dataset["recording"] == self.row(name)))


def prepared(corpus: Path, out: Path | str, config: PipelineConfig | None = None) -> Work:
    """Scan a corpus and create the store."""
    settings = config or configuration()
    output = OutputFolder.at(str(out))
    table = scanned(corpus, output, settings)
    work = Work(output, table, plan_of(table, settings))
    lifecycle.open_store(work.output, ManifestFile.of(table), work.plan)
    return work


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_corpus(tmp_path / "corpus", SPEAKERS)


@pytest.fixture
def work(corpus: Path, tmp_path: Path) -> Work:
    return prepared(corpus, tmp_path / "out")


def expected(path: Path, config: PipelineConfig) -> np.ndarray:
    """The features of a whole recording, (sequence, timestep, mfcc)."""
    found = config.features.extract([read(AudioSource(str(path)), 16_000)]).values
    count = len(found) // config.store.timesteps
    return found[: count * config.store.timesteps].reshape(count, config.store.timesteps, -1)


def test_store_holds_the_features_of_every_recording(work: Work, corpus: Path) -> None:
    summaries = work.extract()
    assert [(s.index, s.sequences, s.failed) for s in summaries[:-1]] == [(i, 8, 0) for i in range(len(work.plan) - 1)]
    for name in work.table["recording_id"]:
        found = work.sequences(name)
        np.testing.assert_array_equal(found["features"], expected(corpus / name, work.plan.config))
        np.testing.assert_array_equal(found["start_frame"], np.arange(10) * 10)
        assert found["valid"].all()


def test_store_of_rounded_features_is_the_exact_one_rounded(work: Work, corpus: Path, tmp_path: Path) -> None:
    work.extract()
    config = configuration()
    coarse = config.model_copy(update={"store": config.store.model_copy(update={"mantissa_bits": 6})})
    rounded = prepared(corpus, tmp_path / "rounded", coarse)
    rounded.extract()
    exact, found = work.dataset(), rounded.dataset()
    frames = feature_store.rounded(exact["features"].to_numpy(), 6)
    np.testing.assert_array_equal(found["features"], frames)
    assert np.abs(frames - exact["features"]).max() > 0
    assert found["features"].attrs["comment"] == "rounded to 6 bits of mantissa: relative error at most 2^-7"
    for name in {variable.name for variable in SEQUENCE_VARIABLES} - {"features"}:
        np.testing.assert_array_equal(found[name], exact[name])
    # the statistics are of what is stored
    training = frames[(found["valid"] & (found["split"] == SPLITS.index("train"))).to_numpy()].reshape(-1, 13)
    total = np.sum([record.train_sum for record in rounded.records()], axis=0) * records.SUM_UNIT
    np.testing.assert_allclose(total, training.sum(axis=0, dtype=np.float64), rtol=1e-9, atol=1e-4)
    assert [r.checksums for r in rounded.records()] == [
        feature_store.checksums(rounded.output, index) for index in range(len(rounded.plan))
    ]
    with pytest.raises(UsageError, match="holds a store of another configuration"):
        lifecycle.open_store(rounded.output, ManifestFile.of(work.table), work.plan)


def test_codes_are_those_of_the_manifest(work: Work) -> None:
    work.extract()
    labels = label_names(work.table)
    for row in work.table.itertuples():
        found = work.sequences(str(row.recording_id))
        assert {labels[code] for code in found["label"].to_numpy()} == {row.label}
        assert {SPLITS[code] for code in found["split"].to_numpy()} == {row.split}


def test_recordings_across_shards_are_ok_in_each(work: Work) -> None:
    work.extract()
    for name in work.table["recording_id"]:
        outcomes = work.outcomes(name)
        assert {(o.status, o.reason, o.decoded_frames) for o in outcomes} == {("ok", "", 101)}
        assert sum(o.sequences_written for o in outcomes) == 10
    assert any(len(work.outcomes(name)) == 2 for name in work.table["recording_id"])


def replace_with_nan(path: Path) -> None:
    samples, rate = soundfile.read(path)
    samples[rate // 2] = np.nan
    soundfile.write(path, samples, rate, format="WAV", subtype="FLOAT")


def cut_in_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (Path.unlink, "cannot be opened: No such file or directory"),
        (cut_in_header, "not readable as audio: "),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_text("text" * 99), "not readable as audio: text in a file named .flac"),
        (replace_with_nan, "a sample is not a finite number, first at 0.500 s"),
    ],
    ids=["missing", "cut", "empty", "text", "not a number"],
)
def test_recording_that_cannot_be_used_is_invalid_and_harms_no_other(
    work: Work, corpus: Path, harm: Callable[[Path], object], reason: str
) -> None:
    harm(corpus / "de/anna/0.flac")
    summaries = work.extract()
    assert sum(summary.failed for summary in summaries) == len(work.outcomes("de/anna/0.flac")) >= 1
    for outcome in work.outcomes("de/anna/0.flac"):
        assert outcome.status == "failed"
        assert outcome.reason.startswith(reason)
        assert (outcome.decoded_frames, outcome.sequences_written) == (0, 0)
    bad = work.sequences("de/anna/0.flac")
    assert bad.sizes["sequence"] == 10
    assert not bad["valid"].any()
    assert bad["features"].isnull().all()
    for name in set(work.table["recording_id"]) - {"de/anna/0.flac"}:
        good = work.sequences(name)
        assert good["valid"].all()
        np.testing.assert_array_equal(good["features"], expected(corpus / name, work.plan.config))


def test_damaged_recording_is_short_up_to_the_damage(corpus: Path, tmp_path: Path) -> None:
    path = corpus / "de/anna/long.flac"
    soundfile.write(path, noise("long", 48_000), 16_000)
    work = prepared(corpus, tmp_path / "out")
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)  # dr_flac decodes what follows
    path.write_bytes(content)
    work.extract()
    samples = read(AudioSource(str(path)), 16_000)
    outcomes = work.outcomes("de/anna/long.flac")
    assert (
        sum(outcome.sequences_written for outcome in outcomes) == work.plan.config.features.frames(len(samples)) // 10
    )
    for outcome in outcomes:
        assert outcome.status == "short"
        assert outcome.reason.startswith(f"damaged at {len(samples) / 16_000:.3f} s: ")


def test_recording_that_ends_early_is_short_and_its_beginning_valid(corpus: Path, tmp_path: Path) -> None:
    path = corpus / "de/anna/long.mp3"
    soundfile.write(path, noise("long", 48_000), 16_000)
    # libsndfile believes the header, which says three seconds
    cut_in_half(path)
    work = prepared(corpus, tmp_path / "out")
    assert work.table["frames"][work.row("de/anna/long.mp3")] == 301
    work.extract()
    decoded = work.plan.config.features.frames(len(read(AudioSource(str(path)), 16_000)))
    written = decoded // 10
    assert 8 < written < 20
    outcomes = work.outcomes("de/anna/long.mp3")
    assert len(outcomes) >= 4
    assert {o.decoded_frames for o in outcomes} == {decoded}
    assert sum(o.sequences_written for o in outcomes) == written
    assert {o.status for o in outcomes} == {"short"}
    assert outcomes[-1].sequences_written == 0
    samples = len(read(AudioSource(str(path)), 16_000))
    assert {o.reason for o in outcomes} == {f"ends at {samples / 16_000:.3f} s, its header names 3.000 s"}
    found = work.sequences("de/anna/long.mp3")
    assert found["valid"].to_numpy().tolist() == [True] * written + [False] * (30 - written)
    np.testing.assert_array_equal(found["features"][:written], expected(path, work.plan.config))
    assert found["features"][written:].isnull().all()


def test_sums_are_those_of_the_valid_training_sequences(work: Work, corpus: Path) -> None:
    training = [name for name, split in zip(work.table["recording_id"], work.table["split"], strict=True)
                if split == "train"]  # fmt: skip
    assert 2 <= len(training) < len(work.table)
    (corpus / training[0]).unlink()
    work.extract()
    dataset = work.dataset()
    chosen = (dataset["valid"] & (dataset["split"] == SPLITS.index("train"))).to_numpy()
    frames = dataset["features"].to_numpy()[chosen].reshape(-1, 13).astype(np.float64)
    written = work.records()
    assert sum(r.train_count for r in written) == len(frames) == 100 * (len(training) - 1)
    for name, values in (("train_sum", frames), ("train_sum_squares", frames**2)):
        total = np.sum([getattr(r, name) for r in written], axis=0) * records.SUM_UNIT
        np.testing.assert_allclose(total, values.sum(axis=0), rtol=1e-9, atol=1e-4)


def test_shard_without_training_sequences_has_no_sums(work: Work) -> None:
    work.extract()
    last = work.records()[-1]
    assert work.plan[len(work.plan) - 1].segments[0].split != SPLITS.index("train")
    assert (last.train_count, set(last.train_sum), set(last.train_sum_squares)) == (0, {0}, {0})


def test_records_hold_the_checksums_of_what_is_stored(work: Work) -> None:
    work.extract()
    for record in work.records():
        assert record.checksums == feature_store.checksums(work.output, record.index)


def test_shards_in_any_order_and_at_once_have_the_bytes_of_one_after_the_other(corpus: Path, tmp_path: Path) -> None:
    one, other = prepared(corpus, tmp_path / "one"), prepared(corpus, tmp_path / "other")
    one.extract()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(other.extract, reversed(range(len(other.plan)))))
    assert one.records() == other.records()


def test_extracting_again_writes_the_same(work: Work) -> None:
    work.extract()
    before = work.records()
    work.extract(1)
    assert work.records() == before


@pytest.mark.parametrize("harm", [None, Path.unlink, cut_in_half, replace_with_nan])
@pytest.mark.parametrize("extension", ["flac", "mp3"])
def test_shards_of_a_long_recording_have_the_same_bytes_as_one_task_and_as_many(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], object], extension: str
) -> None:
    path = corpus / f"de/anna/long.{extension}"
    soundfile.write(path, noise("long", 441_000), 44_100)
    many, one = prepared(corpus, tmp_path / "many"), prepared(corpus, tmp_path / "one")
    if harm is not None:
        harm(path)
    many.extract()
    opened = opened_files(monkeypatch)
    batches = list(map(one.plan.task, one.plan.tasks(np.arange(len(one.plan)), lambda _: 1)))
    for batch in batches:
        task.run_task(batch, out=str(one.output.root), config=one.plan.config)
    assert len(batches[0].shards) >= 12  # of 8 sequences, 100 are the long recording's
    assert one.records() == many.records()
    # for its peak, for its frames, and for the shard where the recording before it ends
    assert opened.count(str(path)) <= 3


@pytest.mark.parametrize("harm", [None, Path.unlink, cut_in_half, replace_with_nan])
def test_recordings_at_the_edges_of_the_shards_of_a_task_are_read_once(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: Callable[[Path], object]
) -> None:
    many, one = (prepared(corpus, tmp_path / name, configuration(4)) for name in ("many", "one"))
    edge = one.plan[0].segments[-1]
    assert edge.recording == one.plan[1].segments[0].recording
    if harm is not None:
        harm(Path(edge.source.container))
    many.extract()
    opened = opened_files(monkeypatch)
    summaries = task.run_task(Task(tuple(one.plan)), out=str(one.output.root), config=one.plan.config)
    assert one.records() == many.records()
    recordings = {segment.recording for shard in one.plan for segment in shard.segments}
    read_twice = 1 if harm is cut_in_half else 0  # by both decoders of FLAC
    assert len(opened) - read_twice == len(set(opened)) == len(recordings)
    size_bytes = one.table["size_bytes"]
    expected_bytes = size_bytes[list(recordings)].sum() + read_twice * size_bytes[edge.recording]
    assert sum(summary.bytes_read for summary in summaries) == expected_bytes


def test_task_that_begins_within_a_long_recording_writes_the_same(corpus: Path, tmp_path: Path) -> None:
    soundfile.write(corpus / "de/anna/long.flac", noise("long", 160_000), 16_000)
    whole, parts = prepared(corpus, tmp_path / "whole"), prepared(corpus, tmp_path / "parts")
    whole.extract()
    everything = parts.plan.task(next(parts.plan.tasks(np.arange(len(parts.plan)), lambda _: 1))).shards
    for shards in (everything[5:9], everything[:5], everything[9:]):
        task.run_task(Task(shards), out=str(parts.output.root), config=parts.plan.config)
    parts.extract(*sorted(set(range(len(parts.plan))) - {shard.index for shard in everything}))
    assert parts.records() == whole.records()


@pytest.mark.parametrize("chunks_per_shard", [1, 3, 50])
def test_features_do_not_depend_on_the_shard_or_its_other_recordings(
    work: Work, corpus: Path, tmp_path: Path, chunks_per_shard: int
) -> None:
    work.extract()
    names = list(work.table["recording_id"])
    before = {name: work.sequences(name)["features"].to_numpy() for name in names}
    make_corpus(corpus, {"fr": {"gina": 3}, "de": {"hans": 2}}, seconds=1.7)
    more = prepared(corpus, tmp_path / "more", configuration(chunks_per_shard))
    more.extract()
    assert len(more.table) == len(names) + 5
    for name in names:
        np.testing.assert_array_equal(more.sequences(name)["features"], before[name])


def test_output_behind_a_url_has_the_bytes_of_a_folder(work: Work, corpus: Path, memory_url: str) -> None:
    there = prepared(corpus, memory_url)
    work.extract()
    there.extract()
    assert there.records() == work.records()


def test_store_that_cannot_be_written_raises_and_is_not_marked(work: Work, tmp_path: Path) -> None:
    (tmp_path / "out/features.zarr/features/c").write_text("a file where a folder has to be")
    with pytest.raises(PipelineError) as error:
        work.extract(1)
    message = str(error.value)
    assert message.startswith(f"shard 1 (sequences 8 to 16) cannot be written to {tmp_path / 'out'}: ")
    assert message.endswith(
        "make room or repair the folder, then run the same command again: finished shards are kept"
    )
    assert isinstance(error.value.__cause__, OSError)
    assert set(records.recorded_shards(work.output).tolist()) == set()


def test_record_that_cannot_be_written_raises(work: Work, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "out/shards")
    (tmp_path / "out/shards").write_text("a file where a folder has to be")
    with pytest.raises(PipelineError, match=r"shard 0 .* cannot be written to .*: (File exists|Not a directory)"):
        work.extract(0)


def test_summary_counts_failures_of_its_own_shard(work: Work, corpus: Path) -> None:
    segments = work.plan[0].segments
    for segment in segments:
        Path(segment.source.container).unlink()
    (summary,) = work.extract(0)
    assert (summary.index, summary.sequences, summary.failed) == (0, 8, len(segments))
    assert summary.busy_s > 0
