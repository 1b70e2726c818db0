"""Manifests of millions of recordings, from a listing and headers that are generated: seconds and driver memory.

`python -m tests.benchmarks.manifests 100000000` measures one size alone.
"""

import shutil
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.outputs import OutputFolder
from tests.benchmarks.measure import SPAWN, peak_bytes, timed
from tests.benchmarks.report import MIB, Row, Table, at_most

RECORDINGS_PER_SPEAKER: Final = 500
GROWTH: Final = 0.01
PART: Final = 2**14
LISTING: Final = "listing.arrow"
BARS: Final = {1_000_000: (10.0, 400.0), 10_000_000: (180.0, 1024.0)}
"""Seconds and MiB that a manifest of so many recordings may take."""
GROWTH_S: Final = 30.0


class Cost(NamedTuple):
    """Seconds, and the peak memory of the process."""

    wall_s: float
    peak_bytes: int


def table(work: Path) -> Table:
    """Measure."""
    rows: list[Row] = []
    for recordings, (wall_s, peak_mib) in BARS.items():
        made, grown = measure(recordings, work)
        rows += [
            at_most(f"{recordings:,} recordings", "s", [made.wall_s], wall_s),
            at_most(f"{recordings:,} recordings: memory", "MiB", [made.peak_bytes / MIB], peak_mib),
            at_most(f"{recordings:,} recordings and {GROWTH:.0%}", "s", [grown.wall_s], GROWTH_S),
            at_most(f"{recordings:,} recordings and {GROWTH:.0%}: memory", "MiB", [grown.peak_bytes / MIB], peak_mib),
        ]
    return Table(
        "Manifest and plan",
        f"A listing of recordings of 2 to 12 s, {RECORDINGS_PER_SPEAKER} per speaker, and headers are generated. "
        "Measured is what a scan does with them, and what extraction makes of the manifest: the plan, and its first, "
        f"middle and last shard. Then the corpus has {GROWTH:.0%} more recordings, which become an append. Memory is "
        "the peak of the whole process (VmHWM).",
        tuple(rows),
    )


def measure(recordings: int, work: Path) -> tuple[Cost, Cost]:
    """Return the cost of a manifest, and of an append to it, each in a process of its own."""
    folder = work / "scratch" / "manifests"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    costs = []
    for number in (recordings, round(recordings * (1 + GROWTH))):
        for step in (write_listing, cost):  # each in a process of its own, for its peak memory
            with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
                found = pool.submit(step, number, str(folder)).result()
        costs.append(found)
    shutil.rmtree(folder)
    first, second = costs
    return first, second


def cost(recordings: int, out: str) -> Cost:
    """Scan a corpus of so many recordings, and open its plan."""
    from pipeline.config import CorpusConfig, PipelineConfig
    from pipeline.corpus import scan
    from pipeline.corpus.database import database
    from pipeline.corpus.diff import compare
    from pipeline.corpus.manifest_file import ManifestFile
    from pipeline.corpus.manifest_table import register
    from pipeline.durable_files import scratch_folder
    from pipeline.extraction.plan import Plan

    output, config, corpus = OutputFolder.at(out), PipelineConfig(), CorpusConfig()
    executor: Any = None

    def work() -> None:
        with scratch_folder(output.root) as folder, database(folder) as db:
            listing = generated_listing(db, output)
            if output.manifest.exists():
                known = ManifestFile.at(output.manifest)
                register(db, known)
                scan.update(listing, compare(db).without_masking(), known, output, config, executor, corpus)
            else:
                scan.scan(listing, output, config, executor, corpus)
        plan = Plan.at(output, config)
        for index in (0, len(plan) // 2, len(plan) - 1):
            assert plan[index].segments

    with mock.patch.object(scan, "collect_headers", generated_headers):
        return Cost(timed(work), peak_bytes())


def write_listing(recordings: int, out: str) -> None:
    """Write what a layout finds: so many recordings."""
    from pipeline.corpus.listing import LISTED

    with pa.OSFile(f"{out}/{LISTING}", "wb") as file, pa.ipc.new_file(file, LISTED) as writer:
        for first in range(0, recordings, PART):
            writer.write_table(_recordings(np.arange(first, min(first + PART, recordings))))


def generated_listing(db: Any, output: OutputFolder) -> Any:
    """Return the listing of the recordings that `write_listing` has written."""
    from pipeline.corpus.database import create, fill
    from pipeline.corpus.listing import LISTED, OTHERS, checked

    create(db, "listing", LISTED)
    create(db, "others", OTHERS)
    with pa.OSFile(str(output.root / LISTING)) as file, pa.ipc.open_file(file) as reader:
        parts = (reader.get_batch(number) for number in range(reader.num_record_batches))
        fill(db, "listing", (pa.Table.from_batches([part]) for part in parts))
    return checked(db, "the generated one")


def generated_headers(db: Any, *_: object) -> None:
    """Create the table of the headers of the recordings that a scan has chosen."""
    from pipeline.corpus.database import create, fill, stream
    from pipeline.corpus.header_task import HEADERS

    create(db, "headers", HEADERS)
    fill(db, "headers", (_headers(part["row"].to_numpy()) for part in stream(db, "SELECT row FROM wanted")))


def _recordings(numbers: Any) -> pa.Table:
    from pipeline.corpus.listing import LISTED

    speakers = numbers // RECORDINGS_PER_SPEAKER
    label = pa.array(["de", "en", "es", "fr"]).take(pa.array(speakers % 4))
    speaker = pc.binary_join_element_wise("s", _digits(speakers, 7), "")
    file = pc.binary_join_element_wise(_digits(numbers, 9), ".flac", "")
    name = pc.binary_join_element_wise(label, speaker, file, "/")
    nothing = {
        "member": pa.string(),
        "start_s": pa.float64(),
        "stop_s": pa.float64(),
        "unusable": pa.string(),
    }
    columns = {
        "recording_id": name,
        "uri": pc.binary_join_element_wise("/corpus", name, "/"),
        "label": label,
        "speaker": speaker,
        "size_bytes": pa.array(_samples(numbers)),
        "modified_ns": pa.array(numbers),
        **{column: pa.nulls(len(numbers), kind) for column, kind in nothing.items()},
    }
    return pa.table(columns).select(LISTED.names)


def _digits(numbers: Any, width: int) -> pa.Array:
    return pc.utf8_lpad(pa.array(numbers).cast(pa.string()), width, "0")


def _headers(rows: Any) -> pa.Table:
    from pipeline.corpus.header_task import HEADERS

    constant = {"sample_rate_hz": 16_000, "channels": 1, "error": None, "transient": False}
    values = {name: pa.array([value] * len(rows), HEADERS.field(name).type) for name, value in constant.items()}
    return pa.table({"row": rows, "samples": _samples(rows), **values}).select(HEADERS.names)


def _samples(numbers: Any) -> Any:
    """Return lengths that look random: multiples of a prime number, modulo 10 s."""
    return 32_000 + numbers * 104_729 % 160_000


if __name__ == "__main__":
    made, grown = measure(int(sys.argv[1]), Path("out/bench"))
    for what, found in (("manifest", made), ("append", grown)):
        print(f"{what}: {found.wall_s:.1f} s, {found.peak_bytes / MIB:.0f} MiB")
