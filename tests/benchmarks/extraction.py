"""Files → finished store on two workers, beside a process pool, joblib with librosa, lhotse, and a floor."""

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config import PipelineConfig
from pipeline.outputs import OutputFolder
from pipeline.runtime.dask_session import DASK_SETTINGS
from pipeline.runtime.executor import THIS_PROCESS, Done, SerialExecutor
from tests.benchmarks import corpus
from tests.benchmarks.measure import ONE_THREAD, SPAWN, Contender, alternate, timed
from tests.benchmarks.report import Table, comparison, memory
from tests.benchmarks.settings import Settings

TITLE = "Extraction"
WORKERS = 2
SHARD_S = PipelineConfig().store.sequences_per_shard * 0.2
COPIES = {"flac": 16, "wav": 16, "mp3": 4, "opus": 4}
"""How often each recording is in the corpus: with few shards, the last ones would decide."""
SLOW_ROUNDS = 2
MAX_ROUNDS = {"wav": 3, "mp3": 2, "opus": 2}
BARS = {"process pool": 0.95, "joblib, librosa": 1.8, "lhotse": 2.5, "floor": 0.8}
"""For FLAC at 16 kHz."""
WORKER_MIB = 1024
LIKE_DASK = DASK_SETTINGS["distributed.nanny.pre-spawn-environ"]
CAPTION = (
    "{hours:.2f} hours of audio ({copies} × the same {speech} corpus), from files in a warm cache to a finished store "
    "of {shards:.1f} shards, on {workers} workers with one thread each; in hours of audio per hour. Before the clock "
    "starts, the workers of all contenders are running and warm, files are listed and headers are read. The clock "
    "stops when the store is finished, with its statistics and ledger; Dask's performance report (0.3 s per run) is "
    "written afterwards. Floor: decoding alone and the kernel alone on one core, × {workers}. Process pool: the same "
    "tasks without Dask. joblib: librosa.load and librosa.feature.mfcc, nothing is stored. lhotse: "
    "compute_and_store_features with Mfcc(num_ceps=40, num_filters=128), which stores one file per recording."
)
CLUSTERS_CAPTION = (
    "The FLAC corpus above on other clusters: ours without the settings of dask_session (Dask's settings), and ours "
    "on a `dask scheduler` with workers at 127.0.0.2 and 127.0.0.3 (other addresses). They take turns separately from "
    "the others, because each idle cluster uses a few percent of a core."
)
MEMORY_CAPTION = (
    "Peak resident memory (VmHWM) of a process in any round of the FLAC corpus; shared memory counts in each process. "
    "Our driver includes Dask's scheduler."
)


def run(settings: Settings) -> tuple[Table, ...]:
    """Measure every codec; memory is that of the FLAC corpus."""
    root, scratch = corpus.make(settings.work, settings.hours), settings.work / "scratch"
    tables, peaks = [], {}
    for codec, copies in COPIES.items():
        folder = corpus.linked(root / codec, root / f"{codec}-{copies}", copies)
        rounds = min(settings.rounds, MAX_ROUNDS.get(codec, settings.rounds))
        measured = alternate(_contenders(folder, scratch / codec), rounds)
        caption = CAPTION.format(
            hours=copies * settings.hours, copies=copies, speech=corpus.speaks(root), workers=WORKERS,
            shards=copies * settings.hours * 3600 / SHARD_S,
        )  # fmt: skip
        title = f"{codec} at {corpus.CODECS[codec][0] // 1000} kHz"
        tables.append(Table(title, caption, comparison("h/h", measured, BARS if codec == "flac" else {})))
        if codec == "flac":
            clusters = alternate(_clusters(folder, scratch / "clusters"), rounds)
            tables.append(Table("Clusters", CLUSTERS_CAPTION, comparison("h/h", clusters, {})))
            peaks = {name: found for name, found in (clusters | measured).items() if name != "floor"}
    shutil.rmtree(scratch)
    tables.append(Table("Memory", MEMORY_CAPTION, memory(peaks, {"ours": WORKER_MIB, "process pool": WORKER_MIB})))
    return tuple(tables)


def _contenders(folder: Path, scratch: Path) -> list[Contender]:
    arguments = {"folder": folder, "scratch": scratch}
    return [
        Contender("ours", ours, arguments, LIKE_DASK),
        Contender("process pool", process_pool, arguments, LIKE_DASK),
        Contender("joblib, librosa", joblib_librosa, {"folder": folder}, ONE_THREAD, rounds=SLOW_ROUNDS),
        Contender("lhotse", lhotse_features, arguments, ONE_THREAD, rounds=SLOW_ROUNDS),
        Contender("floor", floor, {"folder": folder}, LIKE_DASK, one_core=True),
    ]


def _clusters(folder: Path, scratch: Path) -> list[Contender]:
    arguments = {"folder": folder, "scratch": scratch}
    return [
        Contender("ours", ours, arguments, LIKE_DASK),
        Contender("Dask's settings", with_dasks_settings, arguments, ONE_THREAD, rounds=SLOW_ROUNDS),
        Contender("other addresses", at_other_addresses, arguments, LIKE_DASK, rounds=SLOW_ROUNDS),
    ]


class PoolExecutor(SerialExecutor):
    """What `pipeline.extraction` asks of an executor, by processes of the standard library."""

    workers = threads = WORKERS

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        super().__init__()
        self._pool = pool

    def run(
        self,
        function: Callable[[Any], Any],
        items: Iterable[Any],
        limit_s: Callable[[Any], float] | None = None,
    ) -> Generator[Any, None, None]:
        """Yield the results as they arrive."""
        for future in as_completed([self._pool.submit(function, item) for item in items]):
            yield Done(future.result(), THIS_PROCESS)


@contextmanager
def ours(folder: Path, scratch: Path) -> Iterator[Callable[[], float]]:
    """The extract stage on a Dask cluster of the profile `local`."""
    from pipeline.runtime.dask_executor import DaskExecutor
    from pipeline.runtime.profiles import load_profile

    with DaskExecutor(load_profile("local", None), WORKERS) as executor:
        yield _extraction(executor, folder, scratch / "ours")


@contextmanager
def with_dasks_settings(folder: Path, scratch: Path) -> Iterator[Callable[[], float]]:
    """As `ours`, with what Dask does when nobody sets anything: its profiler, its allocator settings."""
    from pipeline.runtime import dask_session

    dask_session.DASK_SETTINGS.clear()
    with ours(folder, scratch / "dask") as once:
        yield once


@contextmanager
def at_other_addresses(folder: Path, scratch: Path) -> Iterator[Callable[[], float]]:
    """As `ours`, on a scheduler that runs already, each worker at an address of its own."""
    from pipeline.runtime.dask_executor import DaskExecutor
    from pipeline.runtime.profiles import ClusterProfile

    where = scratch / "scheduler.json"
    where.parent.mkdir(parents=True, exist_ok=True)
    where.unlink(missing_ok=True)
    dask = [sys.executable, "-m", "dask"]
    common = ["--scheduler-file", str(where)]
    limits = ["--nthreads", "1", "--memory-limit", f"{WORKER_MIB}MiB", "--no-dashboard"]
    with ExitStack() as stack:
        scheduler = [*dask, "scheduler", *common, "--host", "127.0.0.1", "--port", "0", "--dashboard-address", ":0"]
        workers = [[*dask, "worker", *common, "--host", f"127.0.0.{2 + i}", *limits] for i in range(WORKERS)]
        for command in (scheduler, *workers):
            process = stack.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
            stack.callback(process.terminate)
            while not where.exists():
                time.sleep(0.05)
        address = json.loads(where.read_text(encoding="utf-8"))["address"]
        executor = stack.enter_context(DaskExecutor(ClusterProfile(address=address), None))
        while executor.workers < WORKERS:
            time.sleep(0.5)
        yield _extraction(executor, folder, scratch / "others")


@contextmanager
def process_pool(folder: Path, scratch: Path) -> Iterator[Callable[[], float]]:
    """The extract stage on a process pool."""
    with ProcessPoolExecutor(WORKERS, mp_context=SPAWN) as pool:
        yield _extraction(PoolExecutor(pool), folder, scratch / "pool")


def _extraction(executor: Any, folder: Path, scratch: Path) -> Callable[[], float]:
    """Scan, warm the workers, and return the function of a round."""
    from pipeline.corpus.manifest_file import ManifestFile
    from pipeline.extraction.extract import extract
    from tests.support.manifests import write_manifest
    from tests.support.scans import scanned

    shutil.rmtree(scratch, ignore_errors=True)  # of a run that was killed
    config = PipelineConfig()
    table = scanned(folder, OutputFolder.at(str(scratch / "scan")), config)
    audio_s = float(table["duration_s"].sum())
    for _ in executor.run(warm, [table["uri"].iloc[0]] * 8 * WORKERS):
        pass
    numbers = itertools.count()

    def once() -> float:
        output = OutputFolder.at(str(scratch / str(next(numbers))))
        write_manifest(output, table)
        wall_s = extract(output, ManifestFile.at(output.manifest), config, executor).wall_s
        _truncate_files(Path(str(output.root)))
        return audio_s / wall_s

    return once


def _truncate_files(folder: Path) -> None:
    """Give back what files take on the disk. Not by deleting them, which would slow the next round.

    ext4 looks for the place of a new file behind all that were deleted within the last minutes.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            os.truncate(path, 0)


def warm(uri: str) -> int:
    """Load in a worker what a task needs: libraries, tables and the compiled kernel."""
    import pipeline.extraction.task  # noqa: F401
    from pipeline.features.audio import read_blocks
    from pipeline.features.audio_source import AudioSource
    from pipeline.features.mfcc import Mfcc

    config = Mfcc()
    return len(config.extract(read_blocks(AudioSource(uri), config.sample_rate_hz)).values)


@contextmanager
def floor(folder: Path) -> Iterator[Callable[[], float]]:
    """Decoding and kernel, each alone: what `WORKERS` cores do that do nothing else, on the recordings of one copy."""
    from pipeline.features.audio import read_blocks
    from pipeline.features.audio_source import AudioSource
    from pipeline.features.mfcc import Mfcc

    config = Mfcc()
    paths = [str(path) for path in _files(folder) if path.parent.name.endswith("-0000")]

    def once() -> float:
        busy_s = audio_s = 0.0
        for path in paths:
            blocks: list[Any] = []
            busy_s += timed(lambda: blocks.extend(read_blocks(AudioSource(path), config.sample_rate_hz)))  # noqa: B023
            busy_s += timed(lambda: config.extract(blocks))  # noqa: B023
            audio_s += sum(len(block) for block in blocks) / config.sample_rate_hz
        return WORKERS * audio_s / busy_s

    warm(paths[0])
    yield once


@contextmanager
def joblib_librosa(folder: Path) -> Iterator[Callable[[], float]]:
    """What one writes first: librosa in two processes, nothing stored."""
    import joblib

    from pipeline.features.audio import read_header
    from pipeline.features.audio_source import AudioSource

    paths = [str(path) for path in _files(folder)]
    audio_s = sum(read_header(AudioSource(path)).duration_s for path in paths)
    # loky, joblib's default, hangs in a process that multiprocessing started; the pool matters little here
    with joblib.Parallel(WORKERS, backend="multiprocessing") as run:
        run(joblib.delayed(librosa_mfcc)(path) for path in paths[:4] * WORKERS)

        def once() -> float:
            return audio_s / timed(lambda: run(joblib.delayed(librosa_mfcc)(path) for path in paths))

        yield once


def librosa_mfcc(path: str) -> int:
    """Return how many frames librosa makes of a recording."""
    import librosa

    samples, rate_hz = librosa.load(path, sr=16_000)
    return int(librosa.feature.mfcc(y=samples, sr=rate_hz, n_mfcc=40, n_fft=400, hop_length=160).shape[1])


@contextmanager
def lhotse_features(folder: Path, scratch: Path) -> Iterator[Callable[[], float]]:
    """lhotse's own parallel extraction, with processes that are there already."""
    from lhotse import CutSet, Mfcc, MfccConfig, Recording

    recordings = [Recording.from_file(path, recording_id=str(i)) for i, path in enumerate(_files(folder))]
    recordings = [recording.resample(16_000) for recording in recordings]
    cuts, extractor = CutSet.from_manifests(recordings=recordings), Mfcc(MfccConfig(num_ceps=40, num_filters=128))
    audio_s = sum(recording.duration for recording in recordings)
    numbers = itertools.count()

    with ProcessPoolExecutor(WORKERS, mp_context=SPAWN) as pool:

        def compute(some: Any) -> float:
            target = scratch / "lhotse" / str(next(numbers))
            wall_s = timed(
                lambda: some.compute_and_store_features(
                    extractor, target, num_jobs=WORKERS, executor=pool, progress_bar=False
                )
            )
            _truncate_files(target)
            return wall_s

        compute(cuts.subset(first=8))
        yield lambda: audio_s / compute(cuts)


def _files(folder: Path) -> list[Path]:
    """Return the files in an order that has nothing to do with their lengths."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]
