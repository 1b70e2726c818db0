"""Stores of very many shards: what their records cost the driver when an extraction starts, resumes and finishes."""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from pipeline.config import PipelineConfig
from pipeline.outputs import OutputFolder
from tests.benchmarks.measure import SPAWN, peak_bytes, resident_bytes, timed
from tests.benchmarks.report import MIB, Row, Table

CONFIG: Final = PipelineConfig()
WORKERS = 2
LANGUAGES: Final = ("de", "en", "es", "fr")
SHARDS_OF_A_RECORDING: Final = 500
OUTCOMES: Final = 64
"""Recordings in a shard: its 14 minutes of audio are as many recordings of 13 s."""
LINKS: Final = 256
"""Records that are one file."""
ACTIONS: Final = ("start, nothing pending", "resume, half pending", "finish")


class Cost(NamedTuple):
    """Seconds of an action, and the memory of its process, resident before and at most."""

    wall_s: float
    before_bytes: int
    peak_bytes: int


def table(records: int, scratch: Path) -> Table:
    """Measure."""
    rows: list[Row] = []
    with folders(records, scratch) as (count, places):
        for action in ACTIONS:
            for who, workers in (("the driver alone", 0), (f"{WORKERS} workers", WORKERS)):
                with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
                    cost = pool.submit(run, action, str(places[action]), workers).result()
                name = f"{action}: {who}"
                rows += [
                    Row(name, "s", (cost.wall_s,)),
                    Row(f"{name}: time per record", "µs", (1e6 * cost.wall_s / count,)),
                    Row(f"{name}: memory", "MiB", (cost.peak_bytes / MIB,)),
                    Row(f"{name}: memory per record", "bytes", ((cost.peak_bytes - cost.before_bytes) / count,)),
                ]
    return Table(
        "Records of shards",
        f"A store of {count:,} shards without objects, whose records hold {OUTCOMES} outcomes each (links to one file "
        f"in {LINKS}), warm cache. Starting finds no shard pending, and resuming half of them, in a folder that was "
        "never finished. Finishing writes statistics, ledger and digests. Memory is the peak of the driver's process "
        "(VmHWM); per record, without what was resident before. Workers are running; their scheduler is in the "
        "driver's process.",
        tuple(rows),
    )


@contextmanager
def folders(records: int, scratch: Path) -> Iterator[tuple[int, dict[str, Path]]]:
    """Yield the number of shards, and an output folder for each of ACTIONS."""
    from pipeline.extraction import lifecycle
    from pipeline.extraction.plan import Plan

    root = scratch / "records"
    shutil.rmtree(root, ignore_errors=True)
    output = OutputFolder.at(str(root / "all"))
    plan = _begun(output, records)
    _write(output, plan, len(plan))
    half = OutputFolder.at(str(root / "half"))
    shutil.copytree(str(output.root), str(half.root), ignore=shutil.ignore_patterns("*.json"))
    shutil.copytree(str(output.store), str(half.store), dirs_exist_ok=True)
    _write(half, plan, len(plan) // 2)
    from pipeline.corpus.manifest_file import ManifestFile

    lifecycle.finish(output, ManifestFile.at(output.manifest), Plan.at(output, CONFIG))
    yield len(plan), dict(zip(ACTIONS, (root / "all", root / "half", root / "all"), strict=True))
    shutil.rmtree(root)


def _begun(output: OutputFolder, records: int) -> Any:
    """Write the manifest of a few very long recordings and the empty store; return the plan."""
    from pipeline.corpus.manifest_file import ManifestFile
    from pipeline.extraction import lifecycle
    from pipeline.extraction.plan import Plan
    from tests.conftest import make_manifest, make_probe
    from tests.support.manifests import write_manifest

    rate_hz = CONFIG.features.sample_rate_hz
    shard_s = CONFIG.store.sequences_per_shard * CONFIG.store.timesteps * CONFIG.features.hop_s
    samples = round(SHARDS_OF_A_RECORDING * shard_s * rate_hz)
    names = [f"{LANGUAGES[i % len(LANGUAGES)]}/s{i}/long.wav" for i in range(max(8, records // SHARDS_OF_A_RECORDING))]
    manifest = make_manifest([make_probe(name, samples, rate_hz) for name in names], CONFIG)
    write_manifest(output, manifest)
    plan = Plan.at(output, CONFIG)
    lifecycle.open_store(output, ManifestFile.at(output.manifest), plan)
    return plan


def _write(output: OutputFolder, plan: Any, stop: int) -> None:
    """Write the records of the shards before `stop`."""
    from pipeline.store import records

    output.shards.mkdir(exist_ok=True)
    for index in range(stop):
        place = index - index % LINKS
        if index == place or index == len(plan) - 1:
            outcomes = OUTCOMES if index < len(plan) - 1 else 1  # the last record is compared with the plan
            records.write_record(output, _record(plan, index, outcomes))
        else:
            os.link(str(output.shard_record(place)), str(output.shard_record(index)))


def _record(plan: Any, index: int, outcomes: int) -> Any:
    from pipeline.schema import SEQUENCE_VARIABLES
    from pipeline.store.records import RecordingOutcome, ShardRecord

    segment = plan[index].segments[-1]
    random = np.random.default_rng(index)
    sums = random.integers(2**40, 2**50, (2, *CONFIG.features.dims.values())).tolist()
    found = RecordingOutcome(
        recording=segment.recording, status="ok", reason="", decoded_frames=1300, sequences_written=segment.count
    )
    return ShardRecord(
        index=index,
        checksums={variable.name: f"{index:032x}" for variable in SEQUENCE_VARIABLES},
        outcomes=(found,) * outcomes,
        train_count=2**16,
        train_sum=tuple(sums[0]),
        train_sum_squares=tuple(sums[1]),
    )


def run(action: str, folder: str, workers: int) -> Cost:
    """Do one of ACTIONS in this process; without `workers` the driver reads all records."""
    from pipeline.corpus.manifest_file import ManifestFile
    from pipeline.extraction import lifecycle
    from pipeline.extraction.pending import find_pending
    from pipeline.extraction.plan import Plan
    from pipeline.runtime.dask_executor import DaskExecutor
    from pipeline.runtime.profiles import load_profile
    from pipeline.store import record_digests

    output = OutputFolder.at(folder)
    manifest, plan = ManifestFile.at(output.manifest), Plan.at(output, CONFIG)
    with DaskExecutor(load_profile("local", None), max(1, workers)) as executor:
        start: Callable[[], Any] | None = None
        if workers:
            executor.on_each_worker(os.getpid)  # starts them
            start = lambda: executor  # noqa: E731

        def work() -> None:
            if action == "finish":
                lifecycle.finish(output, manifest, plan, start)
                return
            pending = find_pending(output, plan, executor=start).shards
            record_digests.release(output, pending)
            if len(pending) != (0 if action.startswith("start") else len(plan) - len(plan) // 2):
                raise ValueError(f"{len(pending)} shards are pending")

        before = resident_bytes()
        wall_s = timed(work)
        return Cost(wall_s, before, peak_bytes())
