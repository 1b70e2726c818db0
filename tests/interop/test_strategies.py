"""The loader in TensorFlow's strategies for several devices, in one process and in two."""

import json
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import model_stores
from tests.support.deadline import DEADLINE_S

pytestmark = pytest.mark.long

SEQUENCES = 203
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of training sequences whose first feature is their number."""
    folder = tmp_path_factory.mktemp("store")
    return str(model_stores.write(folder, {"train": [(0, SEQUENCES)]}, np.arange(SEQUENCES) % 3).store)


def processes(code: str, store: str, environments: list[Mapping[str, str]]) -> list[Any]:
    """Run code in one process per environment, all at the same time; return the JSON that each of them prints."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code, store], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
            env={"PATH": "", "CUDA_VISIBLE_DEVICES": "", **each},
        ) for each in environments
    ]  # fmt: skip
    try:
        ended = [(*process.communicate(timeout=DEADLINE_S), process.returncode) for process in running]
    finally:
        for process in running:
            process.kill()
    for _, log, code_ in ended:
        assert code_ == 0, log
    return [json.loads(out.splitlines()[-1]) for out, _, _ in ended]


MODEL = """
import json, os, sys
import keras, numpy as np, tensorflow as tf
from model.data.store_reader import Store
from model.loader import sequence_dataset

def network():
    model = keras.Sequential([keras.Input((4, 3)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    return model
"""

MIRRORED = """
cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
dataset = sequence_dataset(sys.argv[1], "train", 32, seed=1)
seen = []
for features, _ in strategy.experimental_distribute_dataset(dataset):
    for replica in strategy.experimental_local_results(features):
        seen += replica.numpy()[:, 0, 0].astype(int).tolist()
with strategy.scope():
    model = network()
losses = model.fit(dataset, epochs=3, verbose=0).history["loss"]
print(json.dumps({"seen": seen, "losses": losses}))
"""

MULTI_WORKER = """
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
strategy = tf.distribute.MultiWorkerMirroredStrategy()
part = Store(sys.argv[1]).part(index, of=2, rest=os.environ["REST"])
seen = [n for features, _ in sequence_dataset(part, "train", 17, seed=1)
        for n in features.numpy()[:, 0, 0].astype(int).tolist()]

@tf.function(reduce_retracing=True)
def step(features):
    return strategy.reduce("SUM", strategy.run(tf.reduce_sum, args=(features,)), axis=None)

steps = 0
for features, _ in sequence_dataset(part, "train", 17, seed=1):
    step(features)  # waits for the other worker
    steps += 1
print(json.dumps({"seen": seen, "steps": steps}))
"""


def test_mirrored_replicas_see_every_sequence_once(store: str) -> None:
    (found,) = processes(MODEL + MIRRORED, store, [{}])
    assert sorted(found["seen"]) == list(range(SEQUENCES))
    assert found["losses"][-1] < found["losses"][0]


@pytest.mark.parametrize(("rest", "total"), [("drop", SEQUENCES - 1), ("repeat", SEQUENCES + 1)])
def test_workers_with_collective_steps_come_to_the_end_of_an_epoch(store: str, rest: str, total: int) -> None:
    with socket.socket() as one, socket.socket() as two:
        for each in (one, two):
            each.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (one, two)]
    task = [{"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}} for index in range(2)]
    found = processes(MODEL + MULTI_WORKER, store, [{"TF_CONFIG": json.dumps(each), "REST": rest} for each in task])
    assert [len(each["seen"]) for each in found] == [total // 2] * 2
    assert len({n for each in found for n in each["seen"]}) == min(total, SEQUENCES)
    assert [each["steps"] for each in found] == [6, 6]
