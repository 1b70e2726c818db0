"""Memory of a task: measured in a process of its own, on a recording far longer than a shard."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile

from pipeline.config import PipelineConfig
from pipeline.outputs import OutputFolder
from tests.support.manifests import write_manifest
from tests.support.scans import build_manifest, listed

pytestmark = pytest.mark.slow

SAMPLE_RATE_HZ = 44_100
MINUTES = {"aa": 25, "bb": 1}

# the peak of the process before the task, and after it
SCRIPT = """
import resource, sys
import numpy, scipy.signal
from pipeline.config import PipelineConfig
from pipeline.corpus.manifest_file import ManifestFile
from pipeline.extraction import lifecycle, plan, segments, task
from pipeline.outputs import OutputFolder

def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

config, output = PipelineConfig(), OutputFolder.at(sys.argv[1])
manifest = ManifestFile.at(output.manifest)
shards = plan.Plan.of(manifest, config)
lifecycle.open_store(output, manifest, shards)
config.features.extract([numpy.zeros(16_000, numpy.float32)])  # compiles, or loads what was compiled
idle = peak_bytes()
task.run_task(segments.Task(tuple(shards)), out=str(output.root), config=config)
print(peak_bytes() - idle, plan.projected_bytes(config))
"""


def manifest_of(corpus: Path, cut: str) -> pd.DataFrame:
    """The manifest of the corpus, whole or in segments of 10 s, each of which overlaps the one before by 4 s."""
    recordings = listed(corpus).recordings
    if cut == "segments":
        recordings = recordings.loc[recordings.index.repeat(100)].reset_index(drop=True)
        recordings["start_s"] = 6.0 * (np.arange(200) % 100)
        recordings["stop_s"] = recordings["start_s"] + 10
        recordings["recording_id"] += "#" + recordings["start_s"].astype("string")
    samples = recordings["label"].map(MINUTES) * 60 * SAMPLE_RATE_HZ
    header = {"samples": samples, "sample_rate_hz": SAMPLE_RATE_HZ, "channels": 2, "error": None, "transient": False}
    return build_manifest(recordings, pd.DataFrame(header), PipelineConfig())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is in other units")
@pytest.mark.parametrize("cut", ["whole", pytest.param("segments", marks=pytest.mark.long)])
def test_a_task_keeps_to_the_memory_that_the_plan_declares(tmp_path: Path, cut: str) -> None:
    random = np.random.default_rng(0)
    for language, minutes in MINUTES.items():
        (tmp_path / "corpus" / language).mkdir(parents=True)
        path = tmp_path / "corpus" / language / "long.flac"
        with soundfile.SoundFile(path, "w", SAMPLE_RATE_HZ, channels=2) as file:
            for _ in range(minutes):
                file.write(0.1 * random.standard_normal((60 * SAMPLE_RATE_HZ, 2)))
    decoded_bytes = max(MINUTES.values()) * 60 * SAMPLE_RATE_HZ * 2 * 4

    output = OutputFolder.at(str(tmp_path / "out"))
    write_manifest(output, manifest_of(tmp_path / "corpus", cut))
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(output.root)],
        capture_output=True, text=True, check=True, timeout=900,
    )  # fmt: skip

    taken, declared = map(int, result.stdout.split())
    assert taken <= declared
    assert declared < decoded_bytes
