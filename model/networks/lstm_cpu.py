"""The recurrence of an LSTM for CPUs: the results of keras.layers.LSTM, in fewer and larger operations.

A timestep is one fused operation forwards, and one and a matrix product backwards; the gradients of the weights are
one product over all timesteps. A batch is cut in two halves that do not wait for one another, so that each keeps a
core busy; `startup` gives TensorFlow's operations threads to match.
"""

from typing import Any, NamedTuple

import keras
import tensorflow as tf

MAX_UNROLLED = 64
"""Timesteps; the graph grows with them."""

FROM_KERAS = (0, 2, 1, 3)
"""Keras has the gates as input, forget, cell, output; the fused operation as input, cell, forget, output. The same
exchange leads back."""


class _Step(NamedTuple):
    """A timestep's input, the states before it, and all that the fused operation computed."""

    x: tf.Tensor
    c: tf.Tensor
    h: tf.Tensor
    cell: Any


def accelerate(network: keras.Model) -> None:
    """Have the LSTM layers of a network run `lstm` on CPUs. They stay Keras's layers, and are saved as such.

    Nothing changes where there is a GPU, whose cuDNN takes a plain layer, for other types than float32, and for
    sequences of more than `MAX_UNROLLED` timesteps. The layers have Keras's own activations, no mask and no state
    from outside, as in our networks.
    """
    if tf.config.list_physical_devices("GPU"):
        return
    for layer in network.layers:
        recurrent = isinstance(layer, keras.layers.LSTM) and layer.compute_dtype == "float32"
        if recurrent and layer.input.shape[1] <= MAX_UNROLLED:
            layer.inner_loop = _InnerLoop(layer.cell)


class _InnerLoop:
    """Stands for the method of the same name of a layer."""

    def __init__(self, cell: keras.layers.LSTMCell) -> None:
        self._cell = cell

    def __call__(self, sequences: tf.Tensor, **_: Any) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Return the last output, all outputs, and no states: none of our networks returns them."""
        weights = (self._cell.kernel, self._cell.recurrent_kernel, self._cell.bias)
        outputs = lstm(sequences, *(tf.convert_to_tensor(weight) for weight in weights))
        return outputs[:, -1], outputs, []


def lstm(x: tf.Tensor, kernel: tf.Tensor, recurrent_kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
    """Return the outputs (batch, timestep, units) of an LSTM over `x` (batch, timestep, feature), all float32.

    `kernel` (feature, 4 × units), `recurrent_kernel` (units, 4 × units) and `bias` (4 × units,) are as in
    keras.layers.LSTM. The number of timesteps is static.
    """
    return tf.custom_gradient(_lstm)(x, kernel, recurrent_kernel, bias)


def _lstm(x: tf.Tensor, kernel: tf.Tensor, recurrent_kernel: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, Any]:
    """Return the outputs, and the function from their gradient to those of the arguments."""
    features, units = kernel.shape[0], recurrent_kernel.shape[0]
    weights = _exchanged(tf.concat([kernel, recurrent_kernel], 0))
    peephole = tf.zeros(units)  # the operations want it, and do not use it
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
    """Return the timesteps of `x` (batch, timestep, feature)."""
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
    """Return for each timestep the gradient (batch, 4 × units) of the gates before their activation."""
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
    """Return the gradients of weights and biases: one product over (timestep × batch, …)."""
    inputs = tf.concat([tf.concat([step.x, step.h], 1) for step in steps], 0)
    d_all = tf.concat(d_gates, 0)
    return tf.matmul(inputs, d_all, transpose_a=True), tf.reduce_sum(d_all, 0)


def _exchanged(weights: tf.Tensor) -> tf.Tensor:
    """Return (…, 4 × units) with the gates' blocks in the other order."""
    gates = tf.split(weights, 4, axis=-1)
    return tf.concat([gates[i] for i in FROM_KERAS], -1)


def _halves(values: tf.Tensor, width: int) -> list[tf.Tensor]:
    """Cut (batch, timestep, `width`) along the batch in two; an odd batch gets a row of zeros first."""
    odd = tf.shape(values)[0] % 2
    even = tf.pad(values, [[0, odd], [0, 0], [0, 0]])  # copies nothing if there is nothing to add
    return [tf.ensure_shape(half, (None, values.shape[1], width)) for half in tf.split(even, 2)]
