"""Scan, plan and submission: what grows with the number of recordings and shards, before any audio is decoded."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pipeline.corpus.database import count
from pipeline.outputs import OutputFolder
from tests.benchmarks import corpus, manifests, records, threads
from tests.benchmarks.measure import SPAWN, Contender, alternate, peak_bytes, resident_bytes, timed
from tests.benchmarks.report import MIB, Row, Table, at_least, same_within
from tests.benchmarks.settings import Settings

TITLE = "Scan and plan"
WORKERS = 2
HEADERS = 20_000
KEYS_KEPT: Final = 100_000
"""Dask keeps the names of so many tasks (dask.utils.key_split), some 27 MiB, before it forgets the oldest."""
SETTLED: Final = 0.05
"""Of the tasks: after these, memory must not grow."""


def run(settings: Settings) -> tuple[Table, ...]:
    """Measure."""
    return (
        _scan(settings),
        manifests.table(settings.work),
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
    """The scan stage after the listing: headers a second."""
    from pipeline.config import CorpusConfig, PipelineConfig
    from pipeline.corpus.listing import list_recordings
    from pipeline.corpus.scan import scan
    from pipeline.runtime.dask_executor import DaskExecutor
    from pipeline.runtime.profiles import load_profile
    from tests.support.scans import tables

    output, config = OutputFolder.at(str(scratch / "headers")), PipelineConfig()
    with DaskExecutor(load_profile("local", None), WORKERS) as executor:

        def once() -> float:
            with tables() as db:
                found = list_recordings(str(folder), db)
                wall_s = timed(lambda: scan(found, output, config, executor, CorpusConfig()))
                return count(db, "listing") / wall_s

        once()
        yield once
    shutil.rmtree(str(output.root))


@contextmanager
def listing(folder: Path) -> Iterator[Callable[[], float]]:
    """The listing of a corpus: files a second."""
    from pipeline.corpus.listing import list_recordings
    from tests.support.scans import tables

    def once() -> float:
        with tables() as db:
            wall_s = timed(lambda: list_recordings(str(folder), db))
            return count(db, "listing") / wall_s

    once()
    yield once


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
