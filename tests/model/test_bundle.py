"""A model's folder: what is written is read again, and what cannot be used is refused in one line."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from upath import UPath

from model import archive
from model.bundle import Bundle, Description, version_of
from model.data.store_reader import Store
from pipeline.errors import PipelineError
from tests.support import model_stores
from tests.support.known_networks import frame_network, log_softmax, sequence_network
from tests.support.model_stores import COEFFICIENTS, LANGUAGES, SAVES_MODELS, TIMESTEPS

pytestmark = SAVES_MODELS

FEATURES = model_stores.config(TIMESTEPS, COEFFICIENTS, 4, 2).features.model_dump()


def bundle(network: keras.Model, labels: tuple[str, ...] = LANGUAGES, timesteps: int = TIMESTEPS) -> Bundle:
    level = "frame" if len(network.input_shape) == 2 else "sequence"
    return Bundle(network, Description.model_validate(
        {"labels": labels, "level": level, "timesteps": timesteps, "features": FEATURES}
    ))  # fmt: skip


def test_a_folder_has_what_was_saved(tmp_path: Path) -> None:
    saved = bundle(frame_network(), ("čeština", "日本語", "fr"))
    saved.save(UPath(tmp_path))
    loaded = Bundle.load(UPath(tmp_path))
    assert loaded.description == saved.description
    features = np.random.default_rng(0).normal(size=(5, TIMESTEPS, 3)).astype(np.float32)
    np.testing.assert_array_equal(loaded.log_posteriors(features), saved.log_posteriors(features))


def test_a_folder_behind_a_url(memory_url: str) -> None:
    folder = UPath(memory_url)
    bundle(sequence_network()).save(folder)
    assert Bundle.load(folder).description.level == "sequence"
    assert len(version_of(folder)) == 16


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"labels": 1}', b'{"labels": ["de", "en"]}'])
def test_a_damaged_description_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.json").write_bytes(content)
    with pytest.raises(PipelineError) as error:
        Description.read(UPath(tmp_path))
    assert str(error.value).startswith(f"{tmp_path / 'labels.json'} is damaged (")
    assert str(error.value).endswith("; run train again")
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    folder = UPath(tmp_path)
    with pytest.raises(PipelineError, match=r"labels\.json is missing; run train again"):
        Bundle.load(folder)
    with pytest.raises(PipelineError, match=r"model\.keras is missing; run train again"):
        version_of(folder)
    bundle(frame_network()).description.write(folder)
    with pytest.raises(PipelineError, match=r"model\.keras is missing; run train again"):
        Bundle.load(folder)


def test_what_is_no_network_is_refused_in_one_line(tmp_path: Path) -> None:
    bundle(frame_network()).save(UPath(tmp_path))
    path = tmp_path / "model.keras"
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(PipelineError) as error:
            Bundle.load(UPath(tmp_path))
        assert str(error.value) == f"{path} is damaged; run train again"


def test_labels_of_another_training_are_refused(tmp_path: Path) -> None:
    bundle(frame_network()).save(UPath(tmp_path))
    labels = tmp_path / "labels.json"
    labels.write_bytes(labels.read_bytes().replace(b'"de"', b'"da"'))
    with pytest.raises(PipelineError) as error:
        Bundle.load(UPath(tmp_path))
    assert str(error.value) == f"{labels} is not what training wrote together with model.keras; run train again"


def test_a_model_of_keras_alone_is_loaded_and_keras_loads_ours(tmp_path: Path) -> None:
    ours = bundle(frame_network())
    ours.save(UPath(tmp_path))
    assert keras.saving.load_model(tmp_path / "model.keras").get_weights()[0].tolist() == np.eye(3).tolist()
    ours.network.save(tmp_path / "model.keras")
    assert Bundle.load(UPath(tmp_path)).network.get_weights()[0].tolist() == np.eye(3).tolist()


def _edited(folder: Path, change: Callable[[bytes], bytes]) -> None:
    """Replace the configuration in a model.keras of a whole archive."""
    members = archive.read(UPath(folder) / "model.keras", "")
    (folder / "model.keras").write_bytes(archive.pack({**members, "config.json": change(members["config.json"])}))


@pytest.mark.parametrize("change", [
    lambda _: b"", lambda _: b"{}", lambda _: b"[]", lambda content: content[:-1],
    lambda content: content.replace(b'"units"', b'"unity"'), lambda content: content.replace(b'"Dense"', b'"Tense"'),
    lambda content: content.replace(b'"class_name": "Sequential"', b'"class_name": 3'),
])  # fmt: skip
def test_a_network_that_keras_cannot_load_is_one_line(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    bundle(frame_network()).save(UPath(tmp_path))
    _edited(tmp_path, change)
    with pytest.raises(PipelineError) as error:
        Bundle.load(UPath(tmp_path))
    assert str(error.value).startswith(f"{tmp_path / 'model.keras'} is not a Keras model: ")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < len(str(tmp_path)) + 350


def test_code_in_a_model_is_not_run(tmp_path: Path) -> None:
    network = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: x), keras.layers.Softmax()])
    bundle(network).save(UPath(tmp_path))
    with pytest.raises(PipelineError, match=r"is not a Keras model: .*Lambda"):
        Bundle.load(UPath(tmp_path))


def test_a_version_depends_on_weights_and_description_alone(tmp_path: Path) -> None:
    folder, network = UPath(tmp_path), frame_network()

    def version(labels: tuple[str, ...] = LANGUAGES) -> str:
        bundle(network, labels).save(folder)
        return version_of(folder)

    first = version()
    members = archive.read(folder / "model.keras", "")
    (folder / "model.keras").write_bytes(archive.pack({**members, "metadata.json": b"{}"}))
    assert version_of(folder) == first
    assert version(("de", "en", "nl")) != first
    network.set_weights([2 * np.eye(3)])
    assert version() != first


def test_a_version_needs_no_tensorflow(tmp_path: Path) -> None:
    bundle(frame_network()).save(UPath(tmp_path))
    code = (
        "import sys; from upath import UPath; from model.bundle import Description, version_of; "
        "folder = UPath(sys.argv[1]); Description.read(folder); print(version_of(folder)); "
        "assert not {'tensorflow', 'keras'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == version_of(UPath(tmp_path))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(model_stores.write(tmp_path / "out", {"train": [(0, 3)]}, [0, 1, 2]).store))


@pytest.mark.parametrize(("change", "reason"), [
    ({"features": {**FEATURES, "n_mels": 64}}, "with n_mels 64, but the store has n_mels 128"),
    ({"features": {**FEATURES, "top_db": None}}, "with top_db None, but the store has top_db 80.0"),
    ({"features": {}}, "with sample_rate_hz None, but the store has sample_rate_hz 16000"),
    ({"timesteps": 9}, f"with timesteps 9, but the store has timesteps {TIMESTEPS}"),
    ({"timesteps": 9, "level": "frame"}, None),
    ({"labels": ("nl", "sv")}, None),
    ({}, None),
])  # fmt: skip
def test_a_model_fits_a_store_of_its_features(store: Store, change: dict[str, object], reason: str | None) -> None:
    fitting = bundle(sequence_network()).description
    assert Description.model_validate({**fitting.model_dump(), **change}).misfit(store) == (
        reason and f"trained on features {reason}"
    )


def test_log_posteriors_have_a_step_per_frame_or_one_per_sequence() -> None:
    features = np.random.default_rng(0).normal(size=(5, TIMESTEPS, 3)).astype(np.float32)
    frames = bundle(frame_network()).log_posteriors(features)
    assert (frames.shape, frames.dtype) == ((5, TIMESTEPS, 3), np.float64)
    np.testing.assert_allclose(frames, log_softmax(features), rtol=1e-5)
    sequences = bundle(sequence_network()).log_posteriors(features)
    np.testing.assert_allclose(sequences, log_softmax(features.mean(axis=1))[:, None], rtol=1e-5)


def test_a_network_that_answers_nan_is_refused() -> None:
    network = frame_network()
    network.set_weights([np.full((3, 3), np.nan)])
    with pytest.raises(PipelineError, match=r"answers NaN, its training diverged; run train again with a lower"):
        bundle(network).log_posteriors(np.ones((1, TIMESTEPS, 3), np.float32))


@pytest.mark.long  # TensorFlow waits ten seconds for memory
def test_running_out_of_memory_is_one_line() -> None:
    # activations of 2 TB
    layers = [keras.Input((3,)), keras.layers.RepeatVector(2**31 - 1), keras.layers.GlobalAveragePooling1D()]
    with pytest.raises(PipelineError) as error:
        bundle(keras.Sequential(layers, name="ann")).log_posteriors(np.ones((20, TIMESTEPS, 3), np.float32))
    assert str(error.value) == (
        "the network ann: TensorFlow ran out of memory; use a machine with more, or a smaller model"
    )


def test_sequences_of_one_timestep_have_one_step() -> None:
    features = np.random.default_rng(0).normal(size=(5, 1, 3)).astype(np.float32)
    for network in (frame_network(), sequence_network(timesteps=1)):
        np.testing.assert_allclose(
            bundle(network, timesteps=1).log_posteriors(features), log_softmax(features), rtol=1e-5
        )


def test_an_impossible_label_has_a_finite_log_posterior() -> None:
    features = np.array([[[200.0, 0.0, -200.0]] * 2], np.float32)
    posterior = bundle(frame_network()).log_posteriors(features)
    assert np.isfinite(posterior).all()
    assert posterior.argmax(axis=2).tolist() == [[0, 0]]


def test_two_languages_have_mirrored_log_posteriors_for_mirrored_features() -> None:
    # a sigmoid near 1 is coarser than one near 0; no language may gain by that, however certain the answers
    network = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, activation="sigmoid", use_bias=False)])
    network.set_weights([np.eye(1)])
    two = bundle(network, ("de", "en"))
    logits = np.array([0.5, 3, 8, 12, 17, 20, 40, 90], np.float32).reshape(-1, 2, 1)
    one, other = (two.log_posteriors(sign * logits) for sign in (1, -1))
    np.testing.assert_allclose(one, other[..., ::-1], rtol=0.01, atol=1e-6)
