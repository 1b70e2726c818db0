"""Scan, plan and submission: what grows with the number of recordings and shards, before any audio is decoded."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from pipeline.outputs import OutputFolder
from tests.benchmarks import corpus, records, threads
from tests.benchmarks.measure import SPAWN, Contender, alternate, peak_bytes, resident_bytes, timed
from tests.benchmarks.report import MIB, Row, Table, at_least, at_most, same_within
from tests.benchmarks.settings import Settings

TITLE = "Scan and plan"
WORKERS = 2
HEADERS = 20_000
RECORDINGS = 1_000_000
SPEAKERS = 2000
KEYS_KEPT: Final = 100_000
"""Dask keeps the names of so many tasks (dask.utils.key_split), some 27 MiB, before it forgets the oldest."""
SETTLED: Final = 0.05
"""Of the tasks: after these, memory must not grow."""


def run(settings: Settings) -> tuple[Table, ...]:
    """Measure."""
    return (
        _scan(settings),
        _plan(settings),
        threads.table(),
        _submission(settings),
        records.table(settings.records, settings.work / "scratch"),
    )


def _scan(settings: Settings) -> Table:
    root = corpus.make(settings.work, settings.hours)
    recordings = sum(path.is_file() for path in (root / "flac").rglob("*"))
    copies = -(-HEADERS // recordings)
    folder = corpus.linked(root / "flac", root / f"flac-{copies}", copies)
    arguments = {"folder": folder, "scratch": settings.work / "scratch"}
    found = alternate([Contender("headers", headers, arguments), Contender("files", listing, {"folder": folder})],
                      settings.rounds)  # fmt: skip
    return Table(
        "Scan",
        f"{copies * recordings:,} FLAC files (links to {recordings} recordings), warm cache, {WORKERS} running Dask "
        "workers. The scan reads headers, assigns splits and writes the manifest; files are listed before it.",
        (
            at_least("headers scanned", "headers/s", found["headers"].values, 5000),
            Row("files listed", "files/s", found["files"].values),
        ),
    )


def _plan(settings: Settings) -> Table:
    found = alternate([Contender("plan", plan)], min(3, settings.rounds))["plan"]
    return Table(
        "Plan",
        f"The manifest of {RECORDINGS:,} recordings of {SPEAKERS} speakers is built from a listing and headers in "
        "memory, and all tasks of its plan are created. Memory is the peak of the whole process (VmHWM).",
        (
            at_most("manifest and plan", "s", found.values, 20),
            at_most("memory", "MiB", [found.peak_bytes / MIB], 1024),
        ),
    )


def _submission(settings: Settings) -> Table:
    with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
        start_mib, end_mib, peak_mib, wall_s = pool.submit(submit, settings.tasks).result()
    return Table(
        "Submission",
        f"{settings.tasks:,} empty tasks, each with one shard of the plan, run by DaskExecutor on {WORKERS} workers. "
        "Memory is the resident memory (VmRSS) of the process of driver and scheduler, measured first after "
        f"{SETTLED:.0%} of the tasks. Dask keeps the names of the last {KEYS_KEPT:,} tasks; the same number of names "
        "is registered before the first task.",
        (
            Row("time per task", "ms", (1e3 * wall_s / settings.tasks,)),
            Row(f"memory after {SETTLED:.0%}", "MiB", (start_mib,)),
            same_within("memory at the end", "MiB", end_mib, start_mib, 0.1),
            Row("peak memory", "MiB", (peak_mib,)),
        ),
    )


@contextmanager
def headers(folder: Path, scratch: Path) -> Iterator[Callable[[], float]]:
    """The scan stage: headers a second."""
    from pipeline.config import CorpusConfig, PipelineConfig
    from pipeline.corpus.listing import list_recordings
    from pipeline.corpus.scan import scan
    from pipeline.runtime.dask_executor import DaskExecutor
    from pipeline.runtime.profiles import load_profile

    output, config = OutputFolder.at(str(scratch / "headers")), PipelineConfig()
    found = list_recordings(str(folder))
    with DaskExecutor(load_profile("local", None), WORKERS) as executor:
        scan(found, output, config, executor, CorpusConfig())
        yield lambda: len(found.recordings) / timed(lambda: scan(found, output, config, executor, CorpusConfig()))
    shutil.rmtree(str(output.root))


@contextmanager
def listing(folder: Path) -> Iterator[Callable[[], float]]:
    """The listing of a corpus: files a second."""
    from pipeline.corpus.listing import list_recordings

    count = len(list_recordings(str(folder)).recordings)
    yield lambda: count / timed(lambda: list_recordings(str(folder)))


@contextmanager
def plan() -> Iterator[Callable[[], float]]:
    """Manifest and plan of a million recordings: seconds."""
    from pipeline.config import PipelineConfig
    from pipeline.corpus.manifest import build_manifest
    from pipeline.corpus.manifest_file import ManifestFile
    from pipeline.extraction.plan import Plan

    config = PipelineConfig()
    recordings, probed = _million()

    def once() -> float:
        def work() -> None:
            made = Plan.of(ManifestFile.of(build_manifest(recordings, probed, config)), config)
            for task in made.tasks(np.arange(len(made)), lambda left: min(4, left)):
                made.task(task)

        return timed(work)

    yield once


def _million() -> tuple[Any, Any]:
    """Return listing and headers of RECORDINGS recordings of 2 to 12 s, as pipeline.scan has them."""
    import pandas as pd

    from pipeline.corpus.listing import COLUMN_TYPES
    from pipeline.corpus.manifest import HEADER_TYPES

    random = np.random.default_rng(1)
    numbers = pd.Series(np.arange(RECORDINGS))
    speaker = "s" + (numbers % SPEAKERS).astype("string").str.zfill(4)
    label = pd.Series(np.array(["de", "en", "es", "fr"])[numbers % SPEAKERS % 4], dtype="string")
    name = label + "/" + speaker + "/" + numbers.astype("string").str.zfill(7) + ".flac"
    samples = random.integers(32_000, 192_000, RECORDINGS)
    none = pd.Series(np.nan, numbers.index)
    columns = (
        name,
        "/corpus/" + name,
        none.astype("string"),
        none,
        none,
        label,
        speaker,
        pd.Series(samples),
        pd.Series(samples),
        none.astype("string"),
    )
    recordings = pd.DataFrame(dict(zip(COLUMN_TYPES, columns, strict=True)))
    probed = {"samples": samples, "sample_rate_hz": 16_000, "channels": 1, "error": None, "transient": False}
    return recordings, pd.DataFrame(probed, recordings.index).astype(HEADER_TYPES)


def submit(tasks: int) -> tuple[float, float, float, float]:
    """Put empty tasks through the executor: MiB soon after the start, at the end and at most, and seconds."""
    from dask.utils import key_split

    from pipeline.runtime.dask_executor import DaskExecutor
    from pipeline.runtime.profiles import load_profile

    for number in range(KEYS_KEPT):
        key_split(f"stub-{number:032x}")
    with DaskExecutor(load_profile("local", None), WORKERS) as executor:
        settled, start = round(SETTLED * tasks), 0

        def work() -> None:
            nonlocal start
            for done, _ in enumerate(executor.run(stub, map(_shard, range(tasks))), start=1):
                if done == settled:
                    start = resident_bytes()

        wall_s = timed(work)
        return start / MIB, resident_bytes() / MIB, peak_bytes() / MIB, wall_s


def _shard(index: int) -> Any:
    from pipeline.extraction.segments import PendingTask

    return PendingTask((index,))


def stub(batch: Any) -> int:
    """A task that does nothing."""
    return int(batch.indices[0])
