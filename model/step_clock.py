"""Running the steps of an epoch, and measuring how long they wait for input."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import tensorflow as tf

Advance = Callable[[int], Any]
"""Called with the number of steps that were finished."""


class StepClock:
    """Runs the training steps of an epoch; measures their speed and the time they spend waiting for data."""

    def __init__(self) -> None:
        self._reader = ThreadPoolExecutor(1, "input")
        self._source: Iterator[Any] | None = None
        self.start()

    def start(self, advance: Advance = lambda _: None) -> None:
        """Begin an epoch; `advance` is called after each call of TensorFlow."""
        self._advance = advance
        self._started_s = self._ended_s = time.perf_counter()
        self._waited_s, self._steps = 0.0, 0

    def train_function(self, model: keras.Model, batch_size: int) -> Callable[[Iterator[Any]], Any]:
        """Return a replacement for `model.train_function` that runs several of Keras's steps per call of TensorFlow.

        For each element of the dataset, a pair of features and labels, it runs one step per `batch_size` rows and
        returns the metrics. Written for Keras 3.15, whose `fit` calls the `train_function` of a model, with an
        iterator over the dataset, if it is set.
        """
        step = tf.function(model.train_step, jit_compile=bool(model.jit_compile), reduce_retracing=True)

        def steps(data: Any) -> Any:
            for start in tf.range(0, tf.shape(data[0])[0], batch_size):
                step(tuple(part[start : start + batch_size] for part in data))
            return model.get_metrics_result()

        call = tf.function(steps, reduce_retracing=True)

        def train_on_next(source: Iterator[Any]) -> Any:
            data = self._next(source)
            logs = call(data)
            steps = -(-len(data[0]) // batch_size)
            self._ended_s, self._steps = time.perf_counter(), self._steps + steps
            self._advance(steps)
            return logs

        return train_on_next

    def _next(self, source: Iterator[Any]) -> Any:
        """Return the next element, and start reading the one after it.

        A thread reads ahead because tf.data does not prefetch where TensorFlow is deterministic.
        """
        asked_s = time.perf_counter()
        if source is not self._source:
            self._source, self._ahead = source, self._reader.submit(next, source)
        data = self._ahead.result()
        self._waited_s += time.perf_counter() - asked_s
        self._ahead = self._reader.submit(next, source)
        return data

    def timings(self) -> dict[str, float]:
        """Return the epoch's steps per second, and the fraction of the time that was spent waiting for input."""
        wall_s = max(self._ended_s - self._started_s, 1e-9)
        return {"steps_per_s": self._steps / wall_s, "input_wait": self._waited_s / wall_s}
