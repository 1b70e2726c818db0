"""Recordings that crash, hang or fill the memory of workers: each costs itself alone."""

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import PipelineConfig, StoreConfig
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.errors import PipelineError
from pipeline.extraction import poison
from pipeline.extraction.extract import extract
from pipeline.extraction.segments import PendingTask, Task
from pipeline.features.mfcc import Mfcc
from pipeline.outputs import OutputFolder
from pipeline.runtime import overdue
from pipeline.runtime.dask_executor import DaskExecutor
from pipeline.runtime.executor import MAX_LOST_IN_A_ROW, SerialExecutor
from pipeline.runtime.profiles import ClusterProfile
from pipeline.schema import MANIFEST_COLUMNS
from tests.conftest import make_corpus
from tests.support import scans
from tests.support.manifests import plan_of
from tests.support.poison import DeadlyExecutor, install

# shards of 8 sequences of 10 frames; a recording of a second has 10 sequences
CONFIG = PipelineConfig(
    features=Mfcc(n_mels=40, n_mfcc=13), store=StoreConfig(timesteps=10, sequences_per_chunk=4, chunks_per_shard=2)
)
SPEAKERS = {"de": {"anna": 2, "bert": 1, "cara": 1}, "en": {"dora": 1, "emil": 1, "fay": 1}}


def recordings_of(task: Task) -> set[int]:
    """The recordings that a task reads, as rows of the manifest."""
    return {s.recording for shard in task.shards for s in shard.segments if not s.masked and not s.failure}


def deadly(guilty: Iterable[int], side_by_side: int = 1, *, backwards: bool = False) -> DeadlyExecutor:
    rows = set(guilty)
    return DeadlyExecutor(lambda task: bool(rows & recordings_of(task)), side_by_side, backwards=backwards)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), SPEAKERS)


def scanned(corpus: Path, out: Path) -> tuple[OutputFolder, pd.DataFrame]:
    output = OutputFolder.at(str(out))
    return output, scans.scanned(corpus, output, CONFIG)


def store_bytes(output: OutputFolder) -> dict[str, bytes]:
    root = Path(str(output.root))
    files = [*(root / "features.zarr").rglob("*"), root / "ledger.parquet"]
    return {str(path.relative_to(root)): path.read_bytes() for path in files if path.is_file()}


@pytest.fixture(scope="module")
def sound(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    """The store without a poisoned recording."""
    output, table = scanned(corpus, tmp_path_factory.mktemp("sound"))
    extract(output, ManifestFile.of(table), CONFIG, SerialExecutor())
    return xr.open_zarr(str(output.store), chunks=None).load()


@pytest.fixture(scope="module")
def poisoned(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The bytes of the store whose recording 2 is poisoned."""
    output, table = scanned(corpus, tmp_path_factory.mktemp("poisoned"))
    extract(output, ManifestFile.of(table), CONFIG, deadly([2]))
    return store_bytes(output)


def test_poisoned_recording_fails_with_the_reason_and_the_others_are_as_without_it(
    corpus: Path, tmp_path: Path, sound: xr.Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    output, table = scanned(corpus, tmp_path)
    caplog.set_level(logging.WARNING, "pipeline")
    summary = extract(output, ManifestFile.of(table), CONFIG, deadly([2, 4]))

    ledger = pd.read_parquet(str(output.ledger))
    failed = ledger["status"] == "failed"
    assert list(np.flatnonzero(failed)) == [2, 4]
    assert set(ledger["reason"][failed]) == {"crash: the process that reads it dies"}
    assert (ledger["status"][~failed] == "ok").all()
    found = xr.open_zarr(str(output.store), chunks=None).load()
    innocent = ~np.isin(found["recording"], [2, 4])
    assert found["valid"].to_numpy().tolist() == innocent.tolist()
    xr.testing.assert_equal(found["features"][innocent], sound["features"][innocent])
    assert np.isnan(found["features"][~innocent]).all()
    assert summary.shards_new == len(plan_of(table, CONFIG))
    assert f"{table['uri'][2]} fails: crash: the process that reads it dies" in caplog.text


@pytest.mark.parametrize(("side_by_side", "backwards"), [(1, True), (2, False), (3, True), (100, False)])
def test_result_is_the_same_whoever_works_beside_it_and_in_whatever_order(
    corpus: Path, tmp_path: Path, poisoned: dict[str, bytes], side_by_side: int, backwards: bool
) -> None:
    output, table = scanned(corpus, tmp_path)
    extract(output, ManifestFile.of(table), CONFIG, deadly([2], side_by_side, backwards=backwards))
    assert store_bytes(output) == poisoned


def test_recording_that_fails_in_one_shard_alone_fails_in_all(
    corpus: Path, tmp_path: Path, poisoned: dict[str, bytes]
) -> None:
    def dies(task: Task) -> bool:
        """Lose the task of the shard in which the recording ends, and the recording alone."""
        return 2 in recordings_of(task) and (len(recordings_of(task)) == 1 or task.shards[-1].index >= last)

    output, table = scanned(corpus, tmp_path)
    last = int(np.flatnonzero(plan_of(table, CONFIG).shards_with(np.array([2])))[-1])
    summary = extract(output, ManifestFile.of(table), CONFIG, DeadlyExecutor(dies))
    assert store_bytes(output) == poisoned
    assert summary.shards_new == len(plan_of(table, CONFIG))


def test_verdict_is_recorded_and_the_next_run_reads_nothing(corpus: Path, tmp_path: Path) -> None:
    class Forbidden(SerialExecutor):
        def run(self, *_: object) -> Iterator[object]:  # type: ignore[override]
            raise AssertionError("something is read")

    output, table = scanned(corpus, tmp_path)
    extract(output, ManifestFile.of(table), CONFIG, deadly([2]))
    assert extract(output, ManifestFile.of(table), CONFIG, Forbidden()).shards_new == 0


def test_task_that_is_lost_though_no_recording_of_it_is_ends_the_run(corpus: Path, tmp_path: Path) -> None:
    output, table = scanned(corpus, tmp_path)
    with pytest.raises(PipelineError, match=r"killed 2 workers in a row.*more memory"):
        extract(output, ManifestFile.of(table), CONFIG, DeadlyExecutor(lambda task: len(recordings_of(task)) > 1))


def test_workers_that_die_at_everything_end_the_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.runtime.executor.MAX_LOST_IN_A_ROW", 5)
    output, table = scanned(corpus, tmp_path)
    with pytest.raises(PipelineError, match="5 tasks in a row ended their workers"):
        extract(output, ManifestFile.of(table), CONFIG, deadly(range(len(table))))
    assert MAX_LOST_IN_A_ROW > 5


@given(
    durations_s=st.lists(st.floats(0.1, 1e5), min_size=1, max_size=5),
    sequences=st.lists(st.integers(1, 50), min_size=5),
)
def test_limit_follows_from_the_length_of_the_audio(durations_s: list[float], sequences: list[int]) -> None:
    count = len(durations_s)
    table = pd.DataFrame({
        "recording_id": [f"{i}.flac" for i in range(count)],
        "uri": [f"{i}.flac" for i in range(count)], "member": None, "start_s": np.nan, "stop_s": np.nan,
        "label": "de", "split": "train", "sequences": sequences[:count], "size_bytes": 1,
        "first_sequence": np.cumsum([0, *sequences[: count - 1]]), "append_index": 0,
        "masked": pd.array([None] * count, "string"), "duration_s": durations_s,
    })  # fmt: skip
    plan = plan_of(table.reindex(columns=list(MANIFEST_COLUMNS)), CONFIG)
    limit_s = poison.limits(plan)
    assert limit_s(PendingTask(tuple(range(len(plan))))) == pytest.approx(60 + sum(durations_s) / 2)
    for shard in plan:
        expected_s = 60 + sum(durations_s[s.recording] for s in shard.segments) / 2
        assert limit_s(PendingTask((shard.index,))) == pytest.approx(expected_s)


@pytest.mark.long
def test_crash_hang_and_full_memory_cost_one_recording_each_on_a_real_cluster(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, config = make_corpus(tmp_path / "corpus", SPEAKERS), CONFIG.model_copy(update={"store": StoreConfig()})
    for name, kind in {"de/anna/0": "crash", "en/dora/0": "hang", "de/bert/0": "memory"}.items():
        (corpus / f"{name}.flac").rename((corpus / name).with_name(f"{kind}.flac"))
    output = OutputFolder.at(str(tmp_path / "out"))
    table = scans.scanned(corpus, output, config)
    monkeypatch.setenv("PYTHONPATH", install(tmp_path / "site"))
    monkeypatch.setattr(poison, "LIMIT_S", 6.0)  # the first task of a worker loads the libraries
    monkeypatch.setattr(overdue, "LOOK_EVERY_S", 0.1)
    local = ClusterProfile(
        kwargs={
            "threads_per_worker": 1, "memory_limit": "1GiB", "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0",
        }
    )  # fmt: skip
    with DaskExecutor(local, 2) as executor:
        extract(output, ManifestFile.of(table), config, executor)
    ledger = pd.read_parquet(str(output.ledger))
    reasons = ledger.set_index("recording_id")["reason"]
    assert dict(reasons[reasons != ""]) == {
        "de/anna/crash.flac": "crash: the process that reads it dies",
        "de/bert/memory.flac": "memory: reading it takes more memory than a worker has",
        "en/dora/hang.flac": "timeout: reading it takes longer than 6 s",
    }
    assert ledger["status"].value_counts().to_dict() == {"ok": len(ledger) - 3, "failed": 3}
