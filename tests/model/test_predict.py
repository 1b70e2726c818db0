"""Prediction: a trained model's folder and recordings in, the language of each out."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import click.testing
import fsspec
import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray
from upath import UPath

from model import predict
from model.bundle import Bundle, version_of
from model.data.store_reader import Store
from model.metrics import levels
from model.networks.basic import Ann, Lstm
from model.predict import Classifier, main
from model.registry.history import Decision, History, PromotionRequest
from model.train import train
from pipeline.durable_files import write_atomically
from pipeline.features.audio import AudioError, read_blocks
from pipeline.features.audio_source import AudioSource
from pipeline.outputs import OutputFolder
from tests.support import model_stores, score_files
from tests.support.model_stores import LANGUAGES, SAVES_MODELS

pytestmark = [pytest.mark.slow, SAVES_MODELS]

SAMPLE_RATE_HZ = 16_000
TIMESTEPS, COEFFICIENTS = 10, 8
SETTINGS = model_stores.config(TIMESTEPS, COEFFICIENTS, 4, 2).features


class Trained(NamedTuple):
    """An output folder with two models, and one recording of each language that they were trained on."""

    output: OutputFolder
    recordings: list[Path]

    def model(self, name: str) -> Path:
        return Path(str(self.output.model(name)))


def _record(path: Path, language: int, duration_s: float = 1.0, seed: int = 0) -> Path:
    """Write noise whose colour is that of a language."""
    noise = np.random.default_rng([language, seed]).normal(size=round(duration_s * SAMPLE_RATE_HZ))
    coloured = np.convolve(noise, np.ones(1 + 2 * language), mode="same")
    soundfile.write(path, 0.1 * coloured, SAMPLE_RATE_HZ)
    return path


def _features(path: Path) -> NDArray[np.float32]:
    """MFCCs of the whole sequences of a recording: (sequence, timestep, mfcc)."""
    frames = SETTINGS.extract(read_blocks(AudioSource(str(path)), SAMPLE_RATE_HZ)).values
    sequences = len(frames) // TIMESTEPS
    return frames[: sequences * TIMESTEPS].reshape(sequences, TIMESTEPS, COEFFICIENTS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("trained")
    recordings = [_record(root / f"{name}.wav", language) for language, name in enumerate(LANGUAGES)]
    features = [_features(recording) for recording in recordings]
    label = np.repeat(range(3), [len(part) for part in features])
    output = model_stores.write(
        root / "out", {"train": [(0, len(label))]}, label, features=np.concatenate(features), recording=label
    )
    train(output, "lstm", Lstm(units=4, batch_size=8, max_epochs=2, learning_rate=0.01), 1, "key")
    train(output, "ann", Ann(hidden_units=(4, 4), batch_size=32, max_epochs=2), 1, "key")
    return Trained(output, recordings)


def _predict(*arguments: str | Path) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("name", ["lstm", "ann"])
def test_the_probabilities_are_those_of_a_recording_in_evaluation(trained: Trained, name: str) -> None:
    result = _predict(trained.model(name), *trained.recordings, "--json")
    assert result.exit_code == 0
    bundle = Bundle.load(trained.output.model(name))
    for row, recording in zip(json.loads(result.stdout), trained.recordings, strict=True):
        steps = bundle.log_posteriors(_features(recording))
        mean = steps.mean(axis=1).mean(axis=0)
        expected = np.exp(mean) / np.exp(mean).sum()
        np.testing.assert_allclose(list(row["probabilities"].values()), expected, atol=2e-6)


@pytest.mark.parametrize("name", ["lstm", "ann"])
def test_the_language_named_is_the_one_that_evaluation_counts(trained: Trained, tmp_path: Path, name: str) -> None:
    rows = json.loads(_predict(trained.model(name), *trained.recordings, "--json").stdout)
    bundle = Bundle.load(trained.output.model(name))
    blocks = [
        score_files.block(block.label, block.recording, np.exp(bundle.log_posteriors(block.features).mean(axis=1)))
        for block in Store(str(trained.output.store)).blocks("train", pool_chunks=3)
    ]
    recordings = levels.recordings(score_files.write(tmp_path, *blocks))
    expected = np.zeros((3, 3), int)
    np.add.at(expected, (range(3), [LANGUAGES.index(row["language"]) for row in rows]), 1)
    assert recordings.confusion.tolist() == expected.tolist()


def test_json_has_one_object_a_file_in_the_order_given(trained: Trained) -> None:
    files = [str(path) for path in reversed(trained.recordings)]
    rows = json.loads(_predict(trained.model("lstm"), *files, "--json").stdout)
    assert [row["file"] for row in rows] == files
    for row in rows:
        assert list(row) == [
            *("file", "language", "probability"),
            *("runner_up", "runner_up_probability", "probabilities"),
        ]
        assert list(row["probabilities"]) == list(LANGUAGES)
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=3e-6)
        best, second = sorted(row["probabilities"].values(), reverse=True)[:2]
        assert row["probabilities"][row["language"]] == row["probability"] == best
        assert row["probabilities"][row["runner_up"]] == row["runner_up_probability"] == second


def test_the_table_has_a_line_a_file(trained: Trained) -> None:
    result = _predict(trained.model("lstm"), *trained.recordings)
    rows = json.loads(_predict(trained.model("lstm"), *trained.recordings, "--json").stdout)
    header, *lines = result.stdout.splitlines()
    assert header.split() == ["file", "language", "probability", "runner-up"]
    assert [line.split() for line in lines] == [
        [
            *(row["file"], row["language"], f"{row['probability']:.1%}"),
            *(row["runner_up"], f"{row['runner_up_probability']:.1%}"),
        ]
        for row in rows
    ]
    assert result.exit_code == 0


def test_the_model_file_itself_will_do(trained: Trained) -> None:
    folder = _predict(trained.model("lstm"), trained.recordings[0], "--json")
    file = _predict(trained.model("lstm") / "model.keras", trained.recordings[0], "--json")
    assert (file.exit_code, file.stdout) == (0, folder.stdout)


def test_a_recording_at_another_rate_in_stereo_is_taken_too(trained: Trained, tmp_path: Path) -> None:
    samples = np.random.default_rng(0).normal(0, 0.1, (44_100, 2))
    soundfile.write(tmp_path / "stereo.flac", samples, 44_100)
    result = _predict(trained.model("lstm"), tmp_path / "stereo.flac", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)[0]["language"] in LANGUAGES


def _write_text(path: Path) -> Path:
    path.write_text("this is no sound")
    return path


def _at_rate(path: Path, rate_hz: int) -> Path:
    """Write a recording whose header names another sample rate."""
    content = _record(path, 0).read_bytes()
    path.write_bytes(content[:24] + rate_hz.to_bytes(4, "little") + content[28:])
    return path


def _write_silence(path: Path) -> Path:
    soundfile.write(path, np.full(SAMPLE_RATE_HZ, 0.1), SAMPLE_RATE_HZ)
    return path


@pytest.mark.parametrize(("make", "reason"), [
    (_write_text, "not readable as audio"),
    (lambda path: path, "cannot be opened: No such file or directory"),
    (lambda path: _record(path, 0, duration_s=0.05), "shorter than one sequence of 0.1 s"),
    (lambda path: _at_rate(path, 1), "its header names a sample rate of 1 Hz, below 4000 Hz"),
    (lambda path: _at_rate(path, 2**31 - 1), "its header names a sample rate of 2147483647 Hz, above 1,000,000 Hz"),
    (_write_silence, "no speech: silent: all of its samples are equal"),
], ids=["text", "missing", "short", "1 Hz", "2 GHz", "silent"])  # fmt: skip
def test_a_file_that_cannot_be_used_is_told_and_the_others_are_named(
    trained: Trained, tmp_path: Path, make: Callable[[Path], Path], reason: str
) -> None:
    bad = make(tmp_path / "bad.wav")
    first, last = trained.recordings[:2]
    result = _predict(trained.model("lstm"), first, bad, last, "--json")
    assert result.exit_code == 1
    assert [row["file"] for row in json.loads(result.stdout)] == [str(first), str(last)]
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith(f"{bad}: {reason}")


def test_a_damaged_recording_is_classified_by_what_is_before_the_damage(trained: Trained, tmp_path: Path) -> None:
    samples, _ = soundfile.read(trained.recordings[0])
    damaged = tmp_path / "damaged.flac"
    soundfile.write(damaged, samples, SAMPLE_RATE_HZ)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    damaged.write_bytes(content)
    result = _predict(trained.model("lstm"), damaged, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)[0]["language"] in LANGUAGES
    assert result.stderr.startswith(f"{damaged}: damaged at 0.")
    assert len(result.stderr.splitlines()) == 1


def test_a_long_recording_is_classified_in_parts(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = Classifier.load(trained.model("ann"))
    recording = str(_record(tmp_path / "long.wav", 0, duration_s=8))
    whole = classifier.probabilities(recording)
    monkeypatch.setattr(predict, "MAX_FRAMES", 100)
    np.testing.assert_allclose(classifier.probabilities(recording), whole, atol=1e-6)


def test_without_a_usable_file_there_is_no_table_and_an_empty_array(trained: Trained, tmp_path: Path) -> None:
    missing = tmp_path / "missing.wav"
    assert _predict(trained.model("lstm"), missing).stdout == ""
    result = _predict(trained.model("lstm"), missing, "--json")
    assert (result.exit_code, json.loads(result.stdout)) == (1, [])


def test_a_recording_of_exactly_one_sequence_is_long_enough(trained: Trained, tmp_path: Path) -> None:
    classifier = Classifier.load(trained.model("lstm"))
    hop = SETTINGS.hop_length
    sequence_s = (TIMESTEPS - 1) * hop / SAMPLE_RATE_HZ  # centred frames: one more than there are hops
    exact = _record(tmp_path / "exact.wav", 1, sequence_s)
    assert classifier.probabilities(str(exact)).sum() == pytest.approx(1)
    short = _record(tmp_path / "short.wav", 1, sequence_s - 1 / SAMPLE_RATE_HZ)
    with pytest.raises(AudioError, match=r"shorter than one sequence of 0\.1 s"):
        classifier.probabilities(str(short))


def test_frames_left_over_at_the_end_change_nothing(trained: Trained, tmp_path: Path) -> None:
    classifier = Classifier.load(trained.model("lstm"))
    whole = _record(tmp_path / "whole.wav", 0, 0.395)
    samples, _ = soundfile.read(whole)
    soundfile.write(tmp_path / "longer.wav", np.concatenate([samples, np.zeros(800)]), SAMPLE_RATE_HZ)
    blocks = (read_blocks(AudioSource(str(tmp_path / name)), SAMPLE_RATE_HZ) for name in ("whole.wav", "longer.wav"))
    frames = [len(SETTINGS.extract(part).values) for part in blocks]
    assert frames == [4 * TIMESTEPS, 4 * TIMESTEPS + 5]
    np.testing.assert_allclose(
        classifier.probabilities(str(tmp_path / "longer.wav")), classifier.probabilities(str(whole)), atol=1e-6
    )


def _without(name: str) -> Callable[[Path, Path], Path]:
    def make(complete: Path, folder: Path) -> Path:
        for file in {"model.keras", "labels.json"} - {name}:
            (folder / file).write_bytes((complete / file).read_bytes())
        return folder

    return make


def _with_model(content: Callable[[bytes], bytes]) -> Callable[[Path, Path], Path]:
    def make(complete: Path, folder: Path) -> Path:
        (folder / "labels.json").write_bytes((complete / "labels.json").read_bytes())
        (folder / "model.keras").write_bytes(content((complete / "model.keras").read_bytes()))
        return folder

    return make


def _with_other_labels(complete: Path, folder: Path) -> Path:
    shutil.copytree(complete, folder, dirs_exist_ok=True)
    labels = (folder / "labels.json").read_text()
    (folder / "labels.json").write_text(labels.replace('"top_db": 80', '"top_db": 90'))
    assert labels != (folder / "labels.json").read_text()
    return folder


@pytest.mark.parametrize(("make", "told"), [
    (lambda _, folder: folder / "nothing", "nothing/model.keras is missing; give a folder like OUT/models/lstm"),
    (_without("model.keras"), "model.keras is missing; give a folder like OUT/models/lstm"),
    (_without("labels.json"), "labels.json is missing; give a folder like OUT/models/lstm"),
    (_with_model(lambda _: b"no model"), "model.keras is damaged; run train again"),
    (_with_model(lambda content: content[: len(content) // 2]), "model.keras is damaged; run train again"),
    (_with_other_labels, "labels.json is not what training wrote together with model.keras; run train again"),
], ids=["no folder", "no model", "no labels", "text", "half a model", "other labels"])  # fmt: skip
def test_what_is_no_model_is_told_in_one_line_with_exit_code_two(
    trained: Trained, tmp_path: Path, make: Callable[[Path, Path], Path], told: str
) -> None:
    result = _predict(make(trained.model("lstm"), tmp_path), trained.recordings[0])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert told in result.stderr


def test_a_network_that_answers_nan_is_one_line(trained: Trained, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.model("ann"), tmp_path / "ann")
    bundle = Bundle.load(trained.output.model("ann"))
    bundle.network.set_weights([np.full_like(weights, np.nan) for weights in bundle.network.get_weights()])
    bundle.save(UPath(folder))
    result = _predict(folder, trained.recordings[0], "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == (
        f"MODEL {folder}: the network ann answers NaN, its training diverged; run train again with a lower "
        "learning_rate\n"
    )


def test_without_a_recording_the_usage_is_wrong(trained: Trained) -> None:
    result = _predict(trained.model("lstm"))
    assert result.exit_code == 2
    assert "Missing argument 'AUDIO...'" in result.stderr


def test_a_classifier_knows_how_its_model_was_trained(trained: Trained) -> None:
    classifier = Classifier.load(trained.model("ann"))
    assert classifier.features == SETTINGS
    description = classifier.bundle.description
    assert (description.labels, description.timesteps, description.level) == (LANGUAGES, TIMESTEPS, "frame")


def test_the_command_writes_the_table_and_nothing_but_failures_beside_it(trained: Trained, tmp_path: Path) -> None:
    missing = tmp_path / "missing.wav"
    command: list[Any] = [sys.executable, "-m", "model.predict", trained.model("lstm"), *trained.recordings, missing]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert process.stderr == f"{missing}: cannot be opened: No such file or directory\n"
    assert process.stdout == _predict(trained.model("lstm"), *trained.recordings).stdout


def _registry(folder: Path, champion: str) -> Path:
    """Write a registry that has promoted `champion`."""
    request = PromotionRequest(challenger=champion, model="ann", store={}, rule={})
    decision = Decision(
        at=datetime(2026, 1, 1, tzinfo=UTC), kind="promoted", reason="", by="", champion=champion, request=request
    )
    write_atomically(folder / "registry.json", History().with_decision(decision).model_dump_json().encode())
    return folder


def test_a_registry_stands_for_its_champion(trained: Trained, tmp_path: Path) -> None:
    version = version_of(UPath(trained.model("ann")))
    registry = _registry(tmp_path / "copied", version)
    shutil.copytree(trained.model("ann"), registry / version)
    result = _predict(registry, *trained.recordings, "--json")
    assert result.exit_code == 0
    assert result.stdout == _predict(trained.model("ann"), *trained.recordings, "--json").stdout
    labels = registry / version / "labels.json"
    labels.write_bytes(labels.read_bytes() + b" ")
    result = _predict(registry, trained.recordings[0])
    assert result.exit_code == 2
    assert result.stderr.startswith(f"MODEL {labels} is not what training wrote together with model.keras; restore")
    assert len(result.stderr.splitlines()) == 1


def test_models_and_registries_behind_urls(trained: Trained, tmp_path: Path, memory_url: str) -> None:
    expected = _predict(trained.model("ann"), *trained.recordings, "--json").stdout
    version = version_of(UPath(trained.model("ann")))
    registry = _registry(tmp_path / "copied", version)
    shutil.copytree(trained.model("ann"), registry / version)
    fsspec.filesystem("memory").put(str(registry), memory_url, recursive=True)
    places = [f"{memory_url}/copied", f"{memory_url}/copied/{version}", f"{memory_url}/copied/{version}/model.keras"]
    for place in (*places, registry.as_uri()):
        result = _predict(place, *trained.recordings, "--json")
        assert (result.exit_code, result.stdout) == (0, expected), result.stderr
    result = _predict(f"{memory_url}/nothing", trained.recordings[0])
    assert result.exit_code == 2
    assert result.stderr == f"MODEL {memory_url}/nothing/model.keras is missing; give a folder like OUT/models/lstm\n"


@pytest.mark.parametrize(("content", "told"), [
    (None, "copied/gone/model.keras is missing"),
    ("{}", "no model has been promoted yet; give a folder like OUT/models/lstm"),
    ("{", "registry.json is damaged ("),
    ('{"champion": 3}', "registry.json is damaged ("),
])  # fmt: skip
def test_a_registry_without_a_usable_champion_is_refused(
    trained: Trained, tmp_path: Path, content: str | None, told: str
) -> None:
    registry = _registry(tmp_path / "copied", "gone")
    if content is not None:
        (registry / "registry.json").write_text(content)
    result = _predict(registry, trained.recordings[0])
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert told in result.stderr
