"""The recurrence for CPUs against the layer that it stands in for."""

import json
import zipfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray

from model.bundle import load_model, model_bytes
from model.networks import build
from model.networks.basic import Lstm
from model.networks.lstm_cpu import MAX_UNROLLED, accelerate, lstm
from tests.support.model_stores import SAVES_MODELS

pytestmark = SAVES_MODELS


def _random(*shape: int) -> NDArray[np.float32]:
    return np.random.default_rng(list(shape)).normal(size=shape).astype(np.float32)


def _outputs_and_gradients(layer: keras.layers.Layer, x: tf.Tensor, weights: list[tf.Tensor]) -> list[NDArray]:
    """Outputs, and the gradients of input and weights for some gradient of the outputs."""
    with tf.GradientTape() as tape:
        tape.watch([x, *weights])
        outputs = layer(x)
    some = tf.constant(_random(*outputs.shape))
    gradients = tape.gradient(outputs, [x, *weights], output_gradients=some)
    return [tensor.numpy() for tensor in (outputs, *gradients)]


@pytest.mark.parametrize(("batch", "timesteps", "features", "units"), [
    (1, 6, 5, 3), (2, 1, 5, 3), (7, 6, 5, 3), (8, 6, 3, 5), (100, 20, 40, 100),
])  # fmt: skip
def test_outputs_and_gradients_are_those_of_the_layer(batch: int, timesteps: int, features: int, units: int) -> None:
    layer = keras.layers.LSTM(units, return_sequences=True)
    layer.build((None, timesteps, features))
    layer.cell.bias.assign(_random(4 * units))
    x = tf.constant(_random(batch, timesteps, features))
    expected = _outputs_and_gradients(layer, x, [weight.value for weight in layer.weights])
    weights = [tf.constant(weight.numpy()) for weight in layer.weights]
    got = _outputs_and_gradients(lambda given: lstm(given, *weights), x, weights)
    assert len(got) == 5
    for ours, theirs in zip(got, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=2e-6 * np.abs(theirs).max())


def _network(timesteps: int = 6) -> keras.Model:
    keras.utils.set_random_seed(1)
    return build.build(Lstm(units=3), timesteps, np.zeros(5), np.ones(5), 3)


def _operations(model: keras.Model) -> set[str]:
    """The types of operations in a training step."""
    step = tf.function(model.train_step)
    features = tf.TensorSpec((None, *model.input_shape[1:]), tf.float32)
    graph = step.get_concrete_function((features, tf.TensorSpec((None,), tf.int64))).graph
    functions = [graph, *(function.graph for function in graph._functions.values() if hasattr(function, "graph"))]
    return {operation.type for each in functions for operation in each.get_operations()}


def test_a_training_step_has_the_fused_operations_and_no_loop() -> None:
    operations = _operations(_network())
    assert {"LSTMBlockCell", "LSTMBlockCellGrad"} <= operations
    assert not operations & {"While", "StatelessWhile", "TensorListReserve"}


def test_long_sequences_stay_with_the_loop_of_the_layer() -> None:
    assert "LSTMBlockCell" not in _operations(_network(MAX_UNROLLED + 1))
    assert "LSTMBlockCell" in _operations(_network(MAX_UNROLLED))


def test_where_there_is_a_gpu_the_layer_is_left_to_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind=None: ["GPU"])
    monkeypatch.setattr(build, "compute_capabilities", list)
    layer = _network().layers[2]
    assert layer.inner_loop.__func__ is keras.layers.LSTM.inner_loop
    assert (layer.use_cudnn, layer.unroll) == ("auto", False)


def test_a_saved_network_is_one_of_keras_alone_and_gives_the_same(tmp_path: Path) -> None:
    model = _network()
    raw = _random(20, 6, 5)
    model.train_on_batch(raw, np.arange(20) % 3)
    path = tmp_path / "model.keras"
    path.write_bytes(model_bytes(model))
    with zipfile.ZipFile(path) as file:
        layers = json.loads(file.read("config.json"))["config"]["layers"]
    assert {layer["module"] for layer in layers} == {"keras.layers"}
    assert [layer["class_name"] for layer in layers][2] == "LSTM"
    assert not layers[2]["config"]["unroll"]
    plain = keras.saving.load_model(path)
    assert plain.layers[2].inner_loop.__func__ is keras.layers.LSTM.inner_loop
    np.testing.assert_allclose(plain.predict_on_batch(raw), model.predict_on_batch(raw), rtol=1e-5, atol=1e-6)


def test_a_loaded_network_trains_on_as_the_one_that_was_saved(tmp_path: Path) -> None:
    model = _network()
    raw, label = _random(20, 6, 5), np.arange(20) % 3
    model.train_on_batch(raw, label)
    path = tmp_path / "model.keras"
    path.write_bytes(model_bytes(model))
    loaded = load_model(path)
    assert "LSTMBlockCell" in _operations(loaded)
    for each in (model, loaded):
        each.train_on_batch(raw, label)
    for ours, theirs in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("options", [
    {"dtype": "mixed_float16"}, {"activation": "relu"}, {"recurrent_activation": "hard_sigmoid"}, {"use_bias": False},
    {"dropout": 0.5}, {"recurrent_dropout": 0.5}, {"go_backwards": True},
])  # fmt: skip
def test_a_layer_with_other_settings_stays_with_keras(options: dict[str, Any]) -> None:
    model = keras.Sequential([keras.Input((6, 5)), keras.layers.LSTM(3, return_sequences=True, **options)])
    accelerate(model)
    assert model.layers[0].inner_loop.__func__ is keras.layers.LSTM.inner_loop


@pytest.mark.parametrize("layers", [
    [keras.layers.LSTM(3)],
    [keras.layers.LSTM(3, return_sequences=True)],
    [keras.layers.Masking(0.0), keras.layers.LSTM(3, return_sequences=True)],
    [keras.layers.LSTM(4, return_sequences=True), keras.layers.LSTM(3)],
    [keras.layers.Bidirectional(keras.layers.LSTM(3))],
])  # fmt: skip
def test_networks_of_any_shape_give_the_same_when_accelerated(layers: list[keras.layers.Layer]) -> None:
    model = keras.Sequential([keras.Input((6, 5)), *layers])
    raw = _random(7, 6, 5)
    raw[:, 4:] = 0  # masked, where something masks
    expected = model(raw).numpy()
    accelerate(model)
    np.testing.assert_allclose(model(raw).numpy(), expected, rtol=1e-5, atol=1e-6)
