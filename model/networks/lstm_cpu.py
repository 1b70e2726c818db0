"""An LSTM for CPUs: the results of keras.layers.LSTM, computed in fewer and larger operations.

A timestep is one fused operation forwards, and one such operation and a matrix product backwards; the gradients of the
weights are one product over all timesteps. A batch is cut into two independent halves, each of which keeps one core
busy; `tensorflow_setup` sets the threads to match.
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

MAX_UNROLLED = 64
"""Timesteps; the size of the graph is proportional to them."""

FROM_KERAS = (0, 2, 1, 3)
"""The order of gates in Keras is input, forget, cell, output; in the fused operation it is input, cell, forget,
output. The same permutation leads back."""


class _Step(NamedTuple):
    """The input of a timestep, the states before it, and the outputs of the fused operation."""

    x: tf.Tensor
    c: tf.Tensor
    h: tf.Tensor
    cell: Any


def accelerate(network: keras.Model) -> None:
    """Let the LSTM layers of a network run `lstm` on CPUs. They remain layers of Keras, and are saved as such.

    Layers are left alone with a GPU, where cuDNN runs them; on more than `MAX_UNROLLED` timesteps; with another type
    than float32, a mask or an initial state; and with settings that `lstm` does not implement.
    """
    if tf.config.list_physical_devices("GPU"):
        return
    for layer in network.layers:
        if isinstance(layer, keras.layers.LSTM) and _is_plain(layer):
            # Keras 3.15: LSTM.call runs inner_loop(sequences=…, initial_state=…, mask=…, training=…)
            layer.inner_loop = _InnerLoop(layer.cell)


def _is_plain(layer: keras.layers.LSTM) -> bool:
    """Whether `lstm` computes what a layer computes."""
    settings = {
        "activation": "tanh", "recurrent_activation": "sigmoid", "use_bias": True, "dropout": 0,
        "recurrent_dropout": 0, "go_backwards": False, "stateful": False, "return_state": False,
    }  # fmt: skip
    config, inputs = layer.get_config(), layer.input
    if isinstance(inputs, list) or inputs.shape[1] > MAX_UNROLLED:  # a list has a mask or states, too
        return False
    return layer.compute_dtype == "float32" and all(config[name] == value for name, value in settings.items())


class _InnerLoop:
    """Replaces the method `inner_loop` of a layer."""

    def __init__(self, cell: keras.layers.LSTMCell) -> None:
        self._cell = cell

    def __call__(self, sequences: tf.Tensor, **_: Any) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Return the last output, all outputs, and no states: a plain layer does not return them."""
        weights = (self._cell.kernel, self._cell.recurrent_kernel, self._cell.bias)
        outputs = lstm(sequences, *(tf.convert_to_tensor(weight) for weight in weights))
        return outputs[:, -1], outputs, []


def lstm(x: tf.Tensor, kernel: tf.Tensor, recurrent_kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Return the outputs (batch, timestep, units) of an LSTM over `x` (batch, timestep, feature), all float32.

    `kernel` (feature, 4 × units), `recurrent_kernel` (units, 4 × units) and `bias` (4 × units,) are those of a
    keras.layers.LSTM. The number of timesteps must be static.
    """
    return tf.custom_gradient(_lstm)(x, kernel, recurrent_kernel, bias)


def _lstm(x: tf.Tensor, kernel: tf.Tensor, recurrent_kernel: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """Return the outputs, and the function that maps their gradient to the gradients of the arguments."""
    features, units = kernel.shape[0], recurrent_kernel.shape[0]
    weights = _exchanged(tf.concat([kernel, recurrent_kernel], 0))
    peephole = tf.zeros(units)  # a required argument, unused
    constants = {"w": weights, "b": _exchanged(bias), **dict.fromkeys(("wci", "wcf", "wco"), peephole)}
    halves = [_forwards(half, units, constants) for half in _halves(x, features)]

    def gradients(d_outputs: tf.Tensor) -> tuple[tf.Tensor, ...]:
        parts = zip(halves, _halves(d_outputs, units), strict=True)
        gates = [_backwards(steps, half, weights[features:], constants) for steps, half in parts]
        of_halves = [_weight_gradients(*each) for each in zip(halves, gates, strict=True)]
        d_weights, d_biases = (_exchanged(tf.add_n(each)) for each in zip(*of_halves, strict=True))
        d_x = tf.matmul(tf.concat([tf.stack(half, 1) for half in gates], 0), weights[:features], transpose_b=True)
        return d_x[: tf.shape(x)[0]], d_weights[:features], d_weights[features:], d_biases

    outputs = tf.concat([tf.stack([step.cell.h for step in steps], 1) for steps in halves], 0)
    return outputs[: tf.shape(x)[0]], gradients


def _forwards(x: tf.Tensor, units: int, constants: dict[str, tf.Tensor]) -> list[_Step]:
    """Run over `x` (batch, timestep, feature); return its timesteps."""
    c = h = tf.zeros((tf.shape(x)[0], units))
    steps: list[_Step] = []
    for x_t in tf.unstack(x, axis=1):
        cell = tf.raw_ops.LSTMBlockCell(x=x_t, cs_prev=c, h_prev=h, forget_bias=0, cell_clip=-1, **constants)
        steps.append(_Step(x_t, c, h, cell))
        c, h = cell.cs, cell.h
    return steps


def _backwards(
    steps: list[_Step], d_outputs: tf.Tensor, recurrent: tf.Tensor, constants: dict[str, tf.Tensor]
) -> list[tf.Tensor]:
    """Return, per timestep, the gradient (batch, 4 × units) of the gates before their activation."""
    d_c = d_h = tf.zeros_like(steps[0].c)
    d_gates: list[tf.Tensor] = []
    for step, d_output in zip(reversed(steps), reversed(tf.unstack(d_outputs, axis=1)), strict=True):
        states = {"x": step.x, "cs_prev": step.c, "h_prev": step.h}
        computed = {name: getattr(step.cell, name) for name in ("i", "cs", "f", "o", "ci", "co")}
        gradient = tf.raw_ops.LSTMBlockCellGrad(
            **states, **computed, cs_grad=d_c, h_grad=d_h + d_output, use_peephole=False, **constants
        )
        d_gates.append(gradient.dicfo)
        d_c, d_h = gradient.cs_prev_grad, tf.matmul(gradient.dicfo, recurrent, transpose_b=True)
    return d_gates[::-1]


def _weight_gradients(steps: list[_Step], d_gates: list[tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the gradients of weights and biases, as one product over (timestep × batch, …)."""
    inputs = tf.concat([tf.concat([step.x, step.h], 1) for step in steps], 0)
    d_all = tf.concat(d_gates, 0)
    return tf.matmul(inputs, d_all, transpose_a=True), tf.reduce_sum(d_all, 0)


def _exchanged(weights: tf.Tensor) -> tf.Tensor:
    """Return `weights` (…, 4 × units) with the gates in the other order."""
    gates = tf.split(weights, 4, axis=-1)
    return tf.concat([gates[i] for i in FROM_KERAS], -1)


def _halves(values: tf.Tensor, width: int) -> list[tf.Tensor]:
    """Cut (batch, timestep, `width`) into two halves of the batch; an odd batch is padded with a row of zeros."""
    odd = tf.shape(values)[0] % 2
    even = tf.pad(values, [[0, odd], [0, 0], [0, 0]])  # no copy if there is nothing to add
    return [tf.ensure_shape(half, (None, values.shape[1], width)) for half in tf.split(even, 2)]
