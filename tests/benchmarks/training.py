"""Steps of the LSTM beside PyTorch's, the wait for input, and the trainer's memory."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from model.tensorflow_setup import load_tensorflow
from pipeline.outputs import OutputFolder
from tests.benchmarks import loader, stores
from tests.benchmarks.measure import Contender, alternate
from tests.benchmarks.report import MIB, Row, Table, at_most, comparison, same_within
from tests.benchmarks.settings import Settings

TITLE = "Training"
BATCHES = (100, 512)
STEPS, WARMING_STEPS = 50, 10
MEMORY_STEPS = 200
LABELS = len(stores.LABELS)
BARS = {"PyTorch": 1.0}
WAIT_SHARDS, WAIT_EPOCHS, WAIT_ROUNDS = 24, 2, 3
CAPTION = (
    "LSTM(100), flattened, and one dense layer with {labels} units, on batches of {batch} sequences of (20, 40) "
    "float32 in memory, including normalisation, RMSprop and cross entropy. Both libraries choose their threads. "
    "Ours: the model and the training steps of model.train, deterministic, ten steps per call. PyTorch: nn.LSTM, "
    "nn.Flatten and nn.Linear on the CPU. A round is {steps} steps."
)


def run(settings: Settings) -> tuple[Table, ...]:
    """Measure."""
    tables = []
    for batch in BATCHES:
        measured = alternate(
            [
                Contender("ours, Keras", ours, {"batch": batch}),
                Contender("PyTorch", pytorch, {"batch": batch}),
            ],
            settings.rounds,
        )
        caption = CAPTION.format(labels=LABELS, batch=batch, steps=STEPS)
        rows = comparison("ms/step", measured, BARS, smaller_is_better=True)
        tables.append(Table(f"Batches of {batch}", caption, rows))
    return (*tables, _input_wait(settings), _memory(settings))


def _input_wait(settings: Settings) -> Table:
    stores.make(settings.work / "store-trained", WAIT_SHARDS, 1, links=True)
    trained = alternate(
        [Contender(str(batch), wait, {"root": settings.work / "store-trained", "batch": batch})
         for batch in BATCHES],
        min(settings.rounds, WAIT_ROUNDS),
    )  # fmt: skip
    sequences = WAIT_SHARDS * stores.SEQUENCES_PER_SHARD
    return Table(
        "Waiting for input",
        f"The share of the step time in which model.train waits for the next batch (input_wait in history.csv, last "
        f"of {WAIT_EPOCHS} epochs), on a store of {sequences:,} training sequences.",
        tuple(at_most(f"batches of {name}", "%", found.values, 2) for name, found in trained.items()),
    )


def _memory(settings: Settings) -> Table:
    roots = {
        "small": stores.make(settings.work / "store-small", loader.SHARDS),
        "large": stores.make(settings.work / "store-large", loader.LARGE_SHARDS, links=True),
    }
    peaks = alternate([Contender(name, some_steps, {"store": str(output.store)}) for name, output in roots.items()], 1)
    small, large = (peaks[name].peak_bytes / MIB for name in roots)
    gib = loader.SHARDS * stores.SEQUENCES_PER_SHARD * 3200 / 2**30
    return Table(
        "Memory of the trainer",
        f"Peak resident memory (VmHWM) after {MEMORY_STEPS} steps of LSTM(100) with batches of 512 through tf.data.",
        (
            Row(f"store of {gib:.2f} GiB", "MiB", (small,)),
            same_within(f"store of {100 * gib:.0f} GiB", "MiB", large, small, 0.1),
        ),
    )


def _batch(size: int) -> tuple[Any, Any]:
    random = np.random.default_rng(1)
    return random.standard_normal((size, 20, 40), np.float32), random.integers(LABELS, size=size)


def _model(batch: int) -> tuple[Any, Any]:
    """Return the model as model.train makes it, and the clock of its steps."""
    load_tensorflow()
    import keras
    import tensorflow as tf

    from model.networks import build
    from model.networks.basic import Lstm
    from model.step_clock import StepClock

    keras.utils.set_random_seed(1)
    tf.config.experimental.enable_op_determinism()
    model = build.build(Lstm(batch_size=batch), 20, np.zeros(40), np.ones(40), LABELS)
    clock = StepClock()
    model.train_function = clock.train_function(model, batch)
    return model, clock


@contextmanager
def ours(batch: int) -> Iterator[Callable[[], float]]:
    load_tensorflow()
    import keras
    import tensorflow as tf

    from model.train import MAX_STEPS_PER_CALL

    model, clock = _model(batch)
    dataset = tf.data.Dataset.from_tensors(_batch(MAX_STEPS_PER_CALL * batch)).repeat()
    started = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: clock.start())

    def once() -> float:
        calls = STEPS // MAX_STEPS_PER_CALL
        model.fit(dataset, steps_per_epoch=calls, callbacks=[started], shuffle=False, verbose=0)
        return 1e3 / clock.timings()["steps_per_s"]

    once()
    yield once


@contextmanager
def pytorch(batch: int) -> Iterator[Callable[[], float]]:
    import torch

    from tests.benchmarks.measure import timed

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(40, 100, batch_first=True)
            self.dense = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(2000, LABELS))
            self.register_buffer("mean", torch.zeros(40))
            self.register_buffer("std", torch.ones(40))

        def forward(self, features: Any) -> Any:
            return self.dense(self.lstm((features - self.mean) / self.std)[0])

    torch.manual_seed(1)
    network = Network()
    loss, optimizer = torch.nn.CrossEntropyLoss(), torch.optim.RMSprop(network.parameters(), 0.001, alpha=0.9)
    features, label = map(torch.from_numpy, _batch(batch))

    def steps(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            loss(network(features), label).backward()
            optimizer.step()

    steps(WARMING_STEPS)
    yield lambda: timed(lambda: steps(STEPS)) * 1e3 / STEPS


@contextmanager
def wait(root: Path, batch: int) -> Iterator[Callable[[], float]]:
    """A real training, of which the history says how long it waited: %."""
    load_tensorflow()
    import pandas as pd

    from model.networks.basic import Lstm
    from model.train import train

    output, config = OutputFolder.at(str(root)), Lstm(batch_size=batch, max_epochs=WAIT_EPOCHS)

    def once() -> float:
        shutil.rmtree(str(output.model("lstm")), ignore_errors=True)
        train(output, "lstm", config, 1, str(batch))
        return 100 * float(pd.read_csv(str(output.model("lstm") / "history.csv"))["input_wait"].iloc[-1])

    yield once


@contextmanager
def some_steps(store: str) -> Iterator[Callable[[], float]]:
    load_tensorflow()
    from model.data.store_reader import Store
    from model.loader import sequence_dataset
    from model.train import steps_per_call

    model, clock = _model(512)
    opened = Store(store)
    steps = steps_per_call(512, opened.block_size)
    dataset = sequence_dataset(opened, "train", steps * 512, seed=1).repeat()

    def once() -> float:
        clock.start()
        model.fit(dataset, steps_per_epoch=MEMORY_STEPS // steps, shuffle=False, verbose=0)
        return clock.timings()["steps_per_s"]

    yield once
