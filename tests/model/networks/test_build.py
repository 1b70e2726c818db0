"""The networks: shapes, normalisation, output and what is saved."""

from pathlib import Path

import keras
import numpy as np
import pytest
from numpy.typing import NDArray

from model.bundle import load_model, model_bytes
from model.config import ModelConfig
from model.networks import build
from model.networks.basic import Ann, Lstm
from tests.support.model_stores import SAVES_MODELS

pytestmark = SAVES_MODELS

TIMESTEPS, COEFFICIENTS = 6, 5
MEAN = np.array([-500.0, 100.0, 0.0, 3.0, -1.0])
STD = np.array([120.0, 50.0, 1.0, 0.5, 20.0])
CONFIGS = [Ann(hidden_units=(7, 4)), Lstm(units=3)]


def _raw(count: int) -> NDArray[np.float32]:
    """Raw MFCCs (sequence, timestep, mfcc)."""
    noise = np.random.default_rng(3).normal(size=(count, TIMESTEPS, COEFFICIENTS))
    return (MEAN + STD * noise).astype(np.float32)


def _input(model: keras.Model, count: int) -> NDArray[np.float32]:
    return _raw(count)[:, 0] if build.takes_frames(model) else _raw(count)


def _build(config: ModelConfig, labels: int) -> keras.Model:
    keras.utils.set_random_seed(1)
    return build.build(config, TIMESTEPS, MEAN, STD, labels)


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_the_ann_classifies_single_frames(labels: int) -> None:
    model = _build(CONFIGS[0], labels)
    assert build.takes_frames(model)
    assert model.input_shape == (None, COEFFICIENTS)
    assert build.probabilities(model, _raw(4)[:, 0]).shape == (4, labels)


@pytest.mark.parametrize("labels", [2, 3, 5])
def test_the_lstm_classifies_whole_sequences(labels: int) -> None:
    model = _build(CONFIGS[1], labels)
    assert not build.takes_frames(model)
    assert model.input_shape == (None, TIMESTEPS, COEFFICIENTS)
    assert build.probabilities(model, _raw(4)).shape == (4, labels)


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("labels", [2, 3])
def test_parameters_are_counted_without_building_the_network(config: ModelConfig, labels: int) -> None:
    counted = build.parameters(config, TIMESTEPS, COEFFICIENTS, labels)
    assert counted == _build(config, labels).count_params()


def test_parameters_beyond_all_memory_are_counted() -> None:
    units = 10**9
    assert build.parameters(Ann(hidden_units=(units, units)), TIMESTEPS, COEFFICIENTS, 2) == (
        (COEFFICIENTS + 1) * units + (units + 1) * units + units + 1
    )
    with keras.StatelessScope():
        pass  # its end gives values to variables that have none


def test_the_ann_is_three_dense_layers() -> None:
    dense = [layer for layer in _build(CONFIGS[0], 3).layers if isinstance(layer, keras.layers.Dense)]
    assert [layer.units for layer in dense] == [7, 4, 3]
    assert [layer.activation.__name__ for layer in dense] == ["relu", "relu", "softmax"]


def test_the_lstm_hands_all_timesteps_to_one_dense_layer() -> None:
    recurrent, flat, dense = _build(CONFIGS[1], 3).layers[2:]
    kinds = [type(recurrent), type(flat), type(dense)]
    assert kinds == [keras.layers.LSTM, keras.layers.Flatten, keras.layers.Dense]
    assert recurrent.output.shape == (None, TIMESTEPS, 3)
    assert dense.input.shape == (None, TIMESTEPS * 3)


def test_the_default_networks_have_these_numbers_of_parameters() -> None:
    mean, std = np.zeros(40), np.ones(40)
    sizes = {
        (type(config), labels): build.build(config, 20, mean, std, labels).count_params()
        for config in (Ann(), Lstm())
        for labels in (2, 3)
    }
    assert sizes == {
        (Ann, 2): 41 * 128 + 129 * 128 + 129,
        (Ann, 3): 41 * 128 + 129 * 128 + 129 * 3,
        (Lstm, 2): 4 * 141 * 100 + 2001,
        (Lstm, 3): 4 * 141 * 100 + 2001 * 3,
    }


@pytest.mark.parametrize(("labels", "units", "activation", "loss"), [
    (2, 1, "sigmoid", "binary_crossentropy"),
    (3, 3, "softmax", "sparse_categorical_crossentropy"),
    (4, 4, "softmax", "sparse_categorical_crossentropy"),
])  # fmt: skip
@pytest.mark.parametrize("config", CONFIGS)
def test_two_languages_share_a_sigmoid_and_more_a_softmax(
    config: ModelConfig, labels: int, units: int, activation: str, loss: str
) -> None:
    model = _build(config, labels)
    assert (model.layers[-1].units, model.layers[-1].activation.__name__, model.loss) == (units, activation, loss)


@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("config", CONFIGS)
def test_probabilities_are_positive_and_sum_to_one(config: ModelConfig, labels: int) -> None:
    model = _build(config, labels)
    probabilities = build.probabilities(model, _input(model, 50))
    assert probabilities.dtype == np.float64
    assert (probabilities > 0).all()
    np.testing.assert_allclose(probabilities.sum(axis=-1), 1, rtol=1e-6)


def test_the_sigmoid_is_the_probability_of_the_second_language() -> None:
    model = _build(CONFIGS[1], 2)
    kernel, _ = model.layers[-1].get_weights()
    model.layers[-1].set_weights([np.zeros_like(kernel), np.array([np.log(4.0)])])
    np.testing.assert_allclose(build.probabilities(model, _raw(1)), [[0.2, 0.8]], rtol=1e-6)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_first_layer_normalises_raw_mfccs_by_the_training_statistics(config: ModelConfig) -> None:
    model = _build(config, 3)
    raw = _input(model, 20)
    np.testing.assert_allclose(np.asarray(model.layers[1](raw)), (raw - MEAN) / STD, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_network_knows_no_other_scale_than_that_of_its_statistics(config: ModelConfig) -> None:
    raw = _input(_build(config, 3), 20)
    expected = build.probabilities(_build(config, 3), raw)
    keras.utils.set_random_seed(1)
    scaled = build.build(config, TIMESTEPS, MEAN * 2 + 1, STD * 2, 3)
    np.testing.assert_allclose(build.probabilities(scaled, raw * 2 + 1), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("labels", [2, 3])
@pytest.mark.parametrize("config", CONFIGS)
def test_a_saved_network_gives_equal_outputs_when_it_is_loaded(
    tmp_path: Path, config: ModelConfig, labels: int
) -> None:
    model = _build(config, labels)
    raw = _input(model, 20)
    model.train_on_batch(raw, np.arange(20) % labels)
    path = tmp_path / "model.keras"
    path.write_bytes(model_bytes(model))
    loaded = load_model(path)
    np.testing.assert_array_equal(build.probabilities(loaded, raw), build.probabilities(model, raw))
    assert build.takes_frames(loaded) is build.takes_frames(model)
    assert loaded.loss == model.loss
    assert type(loaded.optimizer) is type(model.optimizer)
    for variable, saved in zip(loaded.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(np.asarray(variable), np.asarray(saved))


@pytest.mark.parametrize(("config", "optimizer"), [
    (Ann(learning_rate=0.25), keras.optimizers.Adam),
    (Lstm(learning_rate=0.25), keras.optimizers.RMSprop),
])  # fmt: skip
def test_the_ann_learns_by_adam_and_the_lstm_by_rmsprop(config: ModelConfig, optimizer: type) -> None:
    model = _build(config, 2)
    assert type(model.optimizer) is optimizer
    assert float(np.asarray(model.optimizer.learning_rate)) == 0.25


def test_a_network_that_keeps_the_timesteps_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lstm, "network", lambda self, x: x)
    with pytest.raises(ValueError, match=r"kind lstm: the network must return \(batch, width\), not \(None, 6, 5\)"):
        _build(Lstm(), 3)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_seed_decides_the_first_weights(config: ModelConfig) -> None:
    first, second = _build(config, 3).get_weights(), _build(config, 3).get_weights()
    other = build.build(config, TIMESTEPS, MEAN, STD, 3).get_weights()
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(("capabilities", "policy"), [
    ([], "float32"),
    ([(6, 1)], "float32"),
    ([(0, 0)], "float32"),
    ([(7, 0)], "mixed_float16"),
    ([(12, 0), (8, 9)], "mixed_float16"),
    ([(9, 0), (6, 1)], "float32"),
])  # fmt: skip
def test_float16_is_for_gpus_with_tensor_cores(capabilities: list[tuple[int, int]], policy: str) -> None:
    assert build.precision(capabilities) == policy


@pytest.mark.parametrize("config", CONFIGS)
def test_in_mixed_precision_statistics_and_output_stay_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: ModelConfig
) -> None:
    exact = _build(config, 3)
    monkeypatch.setattr(build, "compute_capabilities", lambda: [(8, 0)])
    model = _build(config, 3)
    types = {type(layer): layer.compute_dtype for layer in model.layers[2:-1]}
    hidden = keras.layers.Dense if build.takes_frames(model) else keras.layers.LSTM
    assert types[hidden] == "float16"
    assert [model.layers[i].compute_dtype for i in (1, -1)] == ["float32", "float32"]
    assert {weight.dtype for weight in model.trainable_weights} == {"float32"}
    raw = _input(model, 20)
    np.testing.assert_allclose(build.probabilities(model, raw), build.probabilities(exact, raw), atol=0.01)
    before = model.get_weights()
    model.train_on_batch(raw, np.arange(20) % 3)
    assert not all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    path = tmp_path / "model.keras"
    path.write_bytes(model_bytes(model))
    loaded = load_model(path)
    assert type(loaded.optimizer) is type(model.optimizer) is keras.optimizers.LossScaleOptimizer
    assert [layer.compute_dtype for layer in loaded.layers] == [layer.compute_dtype for layer in model.layers]
    np.testing.assert_array_equal(build.probabilities(loaded, raw), build.probabilities(model, raw))
