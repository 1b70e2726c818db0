"""The extract stage on a real cluster: what it says that it cost, and what it leaves to look at."""

import io
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from pipeline.config import PipelineConfig, StoreConfig
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.extraction.extract import ExtractionSummary, extract
from pipeline.outputs import OutputFolder
from pipeline.runtime.dask_executor import DaskExecutor
from pipeline.runtime.executor import SerialExecutor
from pipeline.runtime.profiles import ClusterProfile
from tests.support.scans import scanned

pytestmark = pytest.mark.slow

CONFIG = PipelineConfig(store=StoreConfig(sequences_per_chunk=64, chunks_per_shard=2))
LOCAL = ClusterProfile(
    kwargs={"threads_per_worker": 1, "memory_limit": "2GiB", "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, make_corpus: Callable[..., Path]) -> Path:
    return make_corpus(tmp_path_factory.mktemp("corpus"), {"de": {"a": 4, "b": 4}, "en": {"c": 4, "d": 4}}, seconds=20)


@pytest.fixture(scope="module")
def executor() -> Iterator[DaskExecutor]:
    with DaskExecutor(LOCAL, 2) as found:
        yield found


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> OutputFolder:
    return OutputFolder.at(str(tmp_path_factory.mktemp("out")))


@pytest.fixture(scope="module")
def table(corpus: Path, output: OutputFolder) -> pd.DataFrame:
    return scanned(corpus, output, CONFIG)


@pytest.fixture(scope="module")
def done(output: OutputFolder, table: pd.DataFrame, executor: DaskExecutor) -> ExtractionSummary:
    return extract(output, ManifestFile.of(table), CONFIG, executor)


def test_busy_time_is_what_the_workers_themselves_measured(done: ExtractionSummary, executor: DaskExecutor) -> None:
    prefixes = executor.session.client.cluster.scheduler.task_prefixes
    computed_s = prefixes["run_pending"].all_durations["compute"]
    assert done.busy_s == pytest.approx(computed_s, rel=0.05)


def test_bytes_are_those_of_the_files(
    done: ExtractionSummary, corpus: Path, output: OutputFolder, table: pd.DataFrame
) -> None:
    sizes = [path.stat().st_size for path in corpus.rglob("*.flac")]
    # a recording in two shards is read for each
    ends = (table["first_sequence"] + table["sequences"] - 1) // 128
    twice = int((ends - table["first_sequence"] // 128)[table["sequences"] > 0].sum())
    assert 0 < twice < len(sizes)
    assert sum(sizes) < done.bytes_read <= sum(sizes) + twice * max(sizes)
    stored = [path for path in Path(str(output.store)).glob("*/c/**/*") if path.is_file()]
    over_sequences = [path for path in stored if path.relative_to(str(output.store)).parts[0] in
                      ("features", "label", "split", "recording", "start_frame", "valid")]  # fmt: skip
    assert done.bytes_written == sum(path.stat().st_size for path in over_sequences)


def test_audio_and_shards_are_the_plan_s(done: ExtractionSummary, table: pd.DataFrame) -> None:
    sequences = int(table["sequences"].sum())
    assert done.audio_s_new == pytest.approx(sequences * 0.2)
    assert done.shards == done.shards_new == -(-sequences // 128)
    assert (done.workers, done.lost_workers, done.retries) == (2, 0, 0)
    assert done.dashboard is not None
    assert done.dashboard.endswith("/pipeline")


def test_price_is_of_busy_core_hours(done: ExtractionSummary) -> None:
    price = done.price_per_1000_audio_h(0.04)
    assert price == pytest.approx(1000 * 0.04 * done.busy_s / done.audio_s_new)
    assert done.price_per_1000_audio_h(None) is None


def test_series_ends_with_what_was_done(done: ExtractionSummary, output: OutputFolder) -> None:
    series = pd.read_csv(io.BytesIO(output.series.read_bytes()))
    last = series.iloc[-1]
    assert last["shards_done"] == done.shards
    assert last["audio_h"] * 3600 == pytest.approx(done.audio_s_new)
    assert last["workers"] == 2
    assert last["memory_bytes"] > 0


def test_performance_report_is_a_page_that_needs_nothing_from_elsewhere(
    done: ExtractionSummary, output: OutputFolder
) -> None:
    page = output.performance.read_text(encoding="utf-8")
    assert "Dask" in page
    assert not re.search(r'<script[^>]* src="http', page)


def test_performance_report_that_cannot_be_written_is_a_warning(
    executor: DaskExecutor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "report").touch()
    page = OutputFolder.at(str(tmp_path)).performance
    with caplog.at_level("WARNING"), executor.monitor.performance_report(page):
        pass
    assert [record.getMessage() for record in caplog.records] == [
        f"no performance report {page}: [Errno 17] File exists: '{tmp_path / 'report'}'"
    ]


def test_nothing_to_do_costs_nothing_and_keeps_what_is_to_be_looked_at(
    done: ExtractionSummary, output: OutputFolder, table: pd.DataFrame, executor: DaskExecutor
) -> None:
    before = output.series.read_bytes()
    again = extract(output, ManifestFile.of(table), CONFIG, executor)
    assert (again.shards_new, again.busy_s, again.bytes_read, again.bytes_written) == (0, 0, 0, 0)
    assert again.audio_h_per_core_h is None
    assert again.price_per_1000_audio_h(0.04) is None
    assert output.series.read_bytes() == before


def test_serial_extraction_has_an_account_as_well(corpus: Path, tmp_path: Path, done: ExtractionSummary) -> None:
    output = OutputFolder.at(str(tmp_path))
    table = scanned(corpus, output, CONFIG)
    alone = extract(output, ManifestFile.of(table), CONFIG, SerialExecutor())
    assert alone.bytes_written == done.bytes_written
    assert table["size_bytes"].sum() <= alone.bytes_read <= done.bytes_read
    assert (alone.lost_workers, alone.retries, alone.workers) == (0, 0, 1)
    assert alone.busy_s <= alone.wall_s
    assert output.series.exists()
    assert not output.performance.exists()
