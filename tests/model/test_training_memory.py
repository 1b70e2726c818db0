"""Training from a store that is larger than the memory there is, and memory that its size does not change."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.outputs import OutputFolder
from pipeline.store import feature_store
from tests.support import model_stores

pytestmark = pytest.mark.slow

TIMESTEPS, COEFFICIENTS = 20, 40
SEQUENCES_PER_CHUNK, CHUNKS_PER_SHARD = 256, 16
SEQUENCES_PER_SHARD = SEQUENCES_PER_CHUNK * CHUNKS_PER_SHARD
SHARD_BYTES = SEQUENCES_PER_SHARD * TIMESTEPS * COEFFICIENTS * 4
ALLOWANCE_BYTES = 200 * 2**20
SHARDS = 1 + 3 * ALLOWANCE_BYTES // SHARD_BYTES

# RLIMIT_DATA bounds what a process can write to: heap and private mappings (VmData), so that TensorFlow's libraries
# and the address space that allocators reserve do not count, as they would for RLIMIT_AS. A first small training
# takes all that does not depend on the store: TensorFlow, its threads, its traced functions. What may come on top of
# that is about twice what is needed, and a third of the training split.
PROGRAM = """
import resource, sys
from pathlib import Path

import numpy as np
import zarr

from model.networks.basic import Lstm
from model.evaluate import evaluate
from model.train import train
from pipeline.outputs import OutputFolder

small, large, allowance_bytes = OutputFolder.at(sys.argv[1]), OutputFolder.at(sys.argv[2]), int(sys.argv[3])
speaker = np.arange(2**20)
config = Lstm(units=2, batch_size=4096, max_epochs=1)
train(small, "lstm", config, 1, "key")
evaluate(small, "lstm", small.model("lstm"), {}, speaker, 1)

status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
limit_bytes = int(status["VmData"].split()[0]) * 1024 + allowance_bytes
resource.setrlimit(resource.RLIMIT_DATA, (limit_bytes, limit_bytes))

try:
    zarr.open_group(str(large.store), mode="r")["features"][:]
except MemoryError:
    print("too large for memory")
print(train(large, "lstm", config, 1, "key")["epochs"], "epoch trained")
print(evaluate(large, "lstm", large.model("lstm"), {}, speaker, 1).sequence.n, "sequences evaluated")
"""


def _write(root: Path, train_shards: int, test_shards: int) -> OutputFolder:
    """Write a store whose shards are all links to its first: of any size, and small on disk."""
    middle, sequences = train_shards * SEQUENCES_PER_SHARD, (train_shards + test_shards) * SEQUENCES_PER_SHARD
    output = model_stores.create(
        root,
        {"train": [(0, middle)], "test": [(middle, sequences)]},
        timesteps=TIMESTEPS,
        coefficients=COEFFICIENTS,
        sequences_per_chunk=SEQUENCES_PER_CHUNK,
        chunks_per_shard=CHUNKS_PER_SHARD,
    )
    random = np.random.default_rng(0)
    arrays = {
        "features": random.standard_normal((SEQUENCES_PER_SHARD, TIMESTEPS, COEFFICIENTS), np.float32),
        "label": random.integers(0, 3, SEQUENCES_PER_SHARD, np.uint16),
        "split": np.zeros(SEQUENCES_PER_SHARD, np.uint8),
        "recording": np.arange(SEQUENCES_PER_SHARD, dtype=np.uint32) // 8,
        "start_frame": np.zeros(SEQUENCES_PER_SHARD, np.uint32),
        "valid": np.ones(SEQUENCES_PER_SHARD, bool),
    }
    feature_store.write_shard(output, 0, arrays)
    feature_store.seal(output, np.zeros(COEFFICIENTS), np.ones(COEFFICIENTS), middle * TIMESTEPS)
    for name in arrays:
        chunks = Path(str(output.store), name, "c")
        first = next(path for path in chunks.rglob("*") if path.is_file())
        for index in range(1, train_shards + test_shards):
            link = chunks / str(index) / first.relative_to(chunks / "0")
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(first, link)
    return output


@pytest.mark.skipif(sys.platform != "linux", reason="the limit and the reading of it are Linux's")
def test_a_store_three_times_the_memory_left_trains_and_evaluates(tmp_path: Path) -> None:
    small, large = _write(tmp_path / "small", 2, 1), _write(tmp_path / "large", SHARDS, 4)
    command = [sys.executable, "-c", PROGRAM, str(small.root), str(large.root), str(ALLOWANCE_BYTES)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines() == [
        "too large for memory",
        "1 epoch trained",
        f"{4 * SEQUENCES_PER_SHARD} sequences evaluated",
    ]


# VmHWM is the most that was ever resident. Two passes over the small store warm TensorFlow up; its eight pools of two
# chunks are enough to have as many blocks on their way at once as there ever are.
LOADER = """
import sys
from pathlib import Path

from model.loader import Store, sequence_dataset


def peak_kib(uri, passes):
    dataset = sequence_dataset(Store(uri), "train", 512, seed=1, pool_chunks=2)
    for _ in range(passes):
        sequences = sum(len(label) for _, label in dataset)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sequences, int(status["VmHWM"].split()[0])


print(*peak_kib(sys.argv[1], 2), *peak_kib(sys.argv[2], 1))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the reading of a process's memory is Linux's")
@pytest.mark.long
def test_the_loaders_memory_is_the_same_for_a_store_a_hundred_times_larger(tmp_path: Path) -> None:
    small, large = _write(tmp_path / "small", 1, 1), _write(tmp_path / "large", 100, 1)
    command = [sys.executable, "-c", LOADER, str(small.store), str(large.store)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    few, few_kib, many, many_kib = map(int, process.stdout.split())
    assert (few, many) == (SEQUENCES_PER_SHARD, 100 * SEQUENCES_PER_SHARD)
    assert many_kib < 1.1 * few_kib, f"{few_kib} KiB for {few} sequences, {many_kib} for {many}"
