"""One cluster for an hour, on which corpora are scanned, extracted, extended, verified and compacted.

`make soak MINUTES=60` exits with 1 if the memory or the descriptors of the driver or of a worker grow: if the median
of the last quarter is above that of the second one by more than the tolerance. The first quarter fills caches.
"""

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.config import PipelineConfig, StoreConfig
from pipeline.outputs import OutputFolder
from pipeline.run_config import RunConfig
from pipeline.run_context import LazyExecutor, Run
from pipeline.run_record import RunRecord
from pipeline.runtime.dask_executor import DaskExecutor
from pipeline.runtime.executor import Executor
from pipeline.runtime.profiles import load_profile
from pipeline.stages import execute
from tests.support.whole_system import write_corpus

CONFIG = RunConfig.model_validate(
    PipelineConfig(store=StoreConfig(sequences_per_chunk=4, chunks_per_shard=2)).model_dump()
)
MEMORY_TOLERANCE = 1.1
DESCRIPTOR_TOLERANCE = 2


@dataclass(frozen=True)
class Sample:
    """Memory and open descriptors of the driver (first) and the workers."""

    memory_mib: tuple[float, ...]
    descriptors: tuple[int, ...]


def sample() -> Sample:
    """Measure this process and the workers below it."""
    driver = psutil.Process()
    workers = [child for child in driver.children(recursive=True) if "spawn_main" in " ".join(child.cmdline())]
    processes = [driver, *sorted(workers, key=lambda process: process.pid)]
    return Sample(
        tuple(process.memory_info().rss / 2**20 for process in processes),
        tuple(process.num_fds() for process in processes),
    )


def cycle(folder: Path, more: Path, executor: Executor) -> None:
    """Bring a corpus through all stages that run on the cluster, with an append in between."""
    out, corpus = folder / "out", folder / "corpus"
    for added in ("de", "en", "fr"):
        shutil.copytree(more / added, corpus / added)
        stages = ("scan", "extract") if added != "fr" else ("scan", "extract", "verify", "compact")
        if added != "de":
            output = OutputFolder.at(str(out))
            out.mkdir(exist_ok=True)
            execute(Run(output, CONFIG, RunRecord(output), LazyExecutor(lambda: executor), str(corpus)), list(stages))
    shutil.rmtree(folder)


def grown(samples: list[Sample]) -> list[str]:
    """Return what has grown from the second quarter to the last one."""
    quarter = len(samples) // 4
    found = []
    for number, name in enumerate(["driver", *(f"worker {n}" for n in range(1, len(samples[-1].memory_mib)))]):
        memory, descriptors = (
            [statistics.median(values[number] for values in part) for part in parts]
            for parts in (
                [[s.memory_mib for s in samples[quarter : 2 * quarter]], [s.memory_mib for s in samples[-quarter:]]],
                [[s.descriptors for s in samples[quarter : 2 * quarter]], [s.descriptors for s in samples[-quarter:]]],
            )
        )
        print(
            f"{name}: {memory[0]:.0f} → {memory[1]:.0f} MiB, {descriptors[0]:.0f} → {descriptors[1]:.0f} descriptors"
        )
        if memory[1] > MEMORY_TOLERANCE * memory[0]:
            found.append(f"the memory of the {name}")
        if descriptors[1] > descriptors[0] + DESCRIPTOR_TOLERANCE:
            found.append(f"the descriptors of the {name}")
    return found


def main() -> None:
    """Run cycles for as long as the command line says, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    minutes = parser.parse_args().minutes
    samples: list[Sample] = []
    with (
        tempfile.TemporaryDirectory(prefix="soak-") as name,
        closing(DaskExecutor(load_profile("local", None), 2)) as executor,
    ):
        more = write_corpus(Path(name, "more"), ("de", "en", "fr"))
        end_s = time.monotonic() + 60 * minutes
        while time.monotonic() < end_s or len(samples) < 8:
            cycle(Path(name, "cycle"), more, executor)
            samples.append(sample())
    found = grown(samples)
    print(f"{len(samples)} cycles in {minutes:g} minutes; grown: {', '.join(found) or 'nothing'}")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
