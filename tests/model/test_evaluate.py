"""Evaluation: counts at the three levels are those of networks whose every answer is known."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, precision_recall_fscore_support

from model.bundle import NETWORK, model_bytes
from model.config import PromotionConfig
from model.evaluate import IncomparableError, compare, evaluate
from model.metrics import score_file
from model.metrics.levels import Scores
from model.metrics.metrics_file import Metrics
from model.metrics.score_file import ScoreFile, joined
from model.metrics.scores import METRICS
from model.registry.history import Comparison
from pipeline.durable_files import write_atomically
from pipeline.errors import PipelineError
from pipeline.outputs import OutputFolder
from tests.support import model_stores
from tests.support.known_networks import frame_network, log_softmax, sequence_network
from tests.support.model_stores import LANGUAGES, SAVES_MODELS, TIMESTEPS

pytestmark = SAVES_MODELS


EACH_ITS_OWN = np.arange(100)


def _evaluate(output: OutputFolder, speaker: NDArray[np.int64] = EACH_ITS_OWN) -> dict[str, Any]:
    """Evaluate the model and return its metrics file; if not given, every recording has a speaker of its own."""
    facts = {"model": "known", "config_hash": "abc"}
    metrics = evaluate(output, "known", output.model("known"), facts, speaker, seed=1)
    assert Metrics.read(output.metrics("known")) == metrics
    content: dict[str, Any] = json.loads(output.metrics("known").read_text(encoding="utf-8"))
    return content


class Spoken:
    """A store of 30 recordings of test, 1 to 12 sequences each, many across the blocks in which it is read."""

    def __init__(self, root: Path, labels: int = 3) -> None:
        rng = np.random.default_rng(2)
        lengths = rng.integers(1, 13, 30)
        self.of_recording = rng.integers(0, labels, 30)
        self.recording = np.repeat(rng.permutation(30), lengths)
        self.label = np.repeat(self.of_recording, lengths)
        logits = rng.normal(0, 2, (len(self.label), TIMESTEPS, 3)) + 0.5 * np.eye(3)[self.label][:, None]
        self.features = logits.astype(np.float32)
        self.valid = rng.random(len(self.label)) > 0.1
        self.valid[0] = True
        self.start_frame = TIMESTEPS * np.concatenate([np.arange(length) for length in lengths])
        self.output = model_stores.write(
            root,
            {"train": [(0, 4)], "test": [(4, 4 + len(self.label))]},
            np.concatenate([[0, 1, 2, 0], self.label]),
            features=np.concatenate([np.zeros((4, TIMESTEPS, 3), np.float32), self.features]),
            valid=np.concatenate([[True] * 4, self.valid]),
            recording=np.concatenate([[99] * 4, self.recording]),
            start_frame=np.concatenate([[0] * 4, self.start_frame]),
        )

    def save(self, model: keras.Model, name: str = "known") -> None:
        folder = self.output.model(name)
        write_atomically(folder / NETWORK, model_bytes(model))
        model_stores.describe(folder, "frame" if len(model.input_shape) == 2 else "sequence")

    def vectors(self, frames: bool) -> dict[str, tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """(true, predicted) labels at each level, one item at a time."""
        label, recording = self.label[self.valid], self.recording[self.valid]
        posterior = log_softmax(self.features[self.valid])  # (sequence, timestep, label)
        sequence = posterior.mean(axis=1) if frames else log_softmax(self.features[self.valid].mean(axis=1))
        rows = np.unique(recording)
        return {
            "frame": (np.repeat(label, TIMESTEPS), posterior.argmax(axis=2).ravel()),
            "sequence": (label, sequence.argmax(axis=1)),
            "recording": (
                np.array([label[recording == row][0] for row in rows]),
                np.array([sequence[recording == row].mean(axis=0).argmax() for row in rows]),
            ),
        }


@pytest.fixture
def spoken(tmp_path: Path) -> Spoken:
    return Spoken(tmp_path)


def _check_scores(found: dict[str, Any], true: NDArray[np.int64], predicted: NDArray[np.int64]) -> None:
    """Equal to what scikit-learn says of the single answers."""
    assert found["n"] == len(true)
    assert found["confusion"] == confusion_matrix(true, predicted, labels=range(3)).tolist()
    assert found["accuracy"] == pytest.approx(accuracy_score(true, predicted))
    present = np.unique(true)
    assert found["macro_f1"] == pytest.approx(
        f1_score(true, predicted, labels=present, average="macro", zero_division=0.0)
    )
    per_label = precision_recall_fscore_support(true, predicted, labels=range(3), zero_division=0.0)
    for label, *values in zip(LANGUAGES, *per_label, strict=True):
        assert list(found["per_label"][label]) == ["precision", "recall", "f1", "n"]
        assert list(found["per_label"][label].values()) == pytest.approx(values)


@pytest.mark.parametrize("frames", [True, False])
def test_every_level_is_counted_as_one_would_by_hand(spoken: Spoken, frames: bool) -> None:
    spoken.save(frame_network() if frames else sequence_network())
    metrics = _evaluate(spoken.output)
    levels = ("frame", "sequence", "recording") if frames else ("sequence", "recording")
    vectors = spoken.vectors(frames)
    for level in levels:
        _check_scores(metrics[level], *vectors[level])
    assert metrics["recording"]["n"] == len(np.unique(spoken.recording[spoken.valid]))
    assert 0.4 < metrics["sequence"]["accuracy"] < 1


@pytest.mark.parametrize("frames", [True, False])
def test_the_metrics_file_has_known_keys(spoken: Spoken, frames: bool) -> None:
    spoken.save(frame_network() if frames else sequence_network())
    metrics = _evaluate(spoken.output)
    levels = ["frame", "sequence", "recording"] if frames else ["sequence", "recording"]
    further = ["labels_without_test", "labels_without_validation", "example", "store"]
    assert list(metrics) == ["model", "config_hash", "labels", *levels, *further]
    assert (metrics["model"], metrics["labels"], metrics["config_hash"]) == ("known", list(LANGUAGES), "abc")
    assert metrics["labels_without_test"] == []
    assert metrics["labels_without_validation"] == list(LANGUAGES)
    assert metrics["store"]["manifest_digest"] == "0123456789abcdef"
    for level in levels:
        interval = ["macro_f1_interval"] if level == "recording" else []
        assert list(metrics[level]) == ["n", "accuracy", "macro_f1", "confusion", "per_label", *interval]
        assert list(metrics[level]["per_label"]) == list(LANGUAGES)


def test_a_language_without_test_recordings_is_named_and_left_out_of_the_mean_f1(tmp_path: Path) -> None:
    spoken = Spoken(tmp_path, labels=2)
    spoken.save(frame_network())
    metrics = _evaluate(spoken.output)
    assert metrics["labels_without_test"] == ["fr"]
    assert metrics["sequence"]["per_label"]["fr"]["n"] == 0
    assert sum(row[2] for row in metrics["sequence"]["confusion"]) > 0  # it is answered, wrongly
    f1 = [metrics["sequence"]["per_label"][label]["f1"] for label in ("de", "en")]
    assert metrics["sequence"]["macro_f1"] == pytest.approx(np.mean(f1))
    _check_scores(metrics["sequence"], *spoken.vectors(frames=True)["sequence"])


@pytest.mark.parametrize("runs", [{"train": [(0, 4)]}, {"train": [(0, 3)], "test": [(3, 4)]}])
def test_a_store_without_valid_test_sequences_is_refused(tmp_path: Path, runs: model_stores.SplitRuns) -> None:
    output = model_stores.write(tmp_path, runs, [0, 1, 2, 0], valid=[True, True, True, False])
    with pytest.raises(PipelineError, match="has no valid test sequence to evaluate on; add speakers"):
        _evaluate(output)
    assert not output.metrics("known").exists()


@pytest.mark.parametrize("frames", [True, False])
def test_the_scores_of_every_sequence_are_kept(spoken: Spoken, monkeypatch: pytest.MonkeyPatch, frames: bool) -> None:
    monkeypatch.setattr(score_file, "ROWS_PER_GROUP", 10)
    spoken.save(frame_network() if frames else sequence_network())
    speaker = EACH_ITS_OWN // 7
    _evaluate(spoken.output, speaker)
    found = joined(list(ScoreFile.open(spoken.output.scores("known")).blocks()))
    logits = spoken.features[spoken.valid]
    expected = log_softmax(logits).mean(axis=1) if frames else log_softmax(logits.mean(axis=1))
    np.testing.assert_allclose(found.log_posterior, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.label, spoken.label[spoken.valid])
    np.testing.assert_array_equal(found.recording, spoken.recording[spoken.valid])
    np.testing.assert_array_equal(found.speaker, speaker[spoken.recording[spoken.valid]])
    np.testing.assert_array_equal(found.sequence, 4 + np.flatnonzero(spoken.valid))
    np.testing.assert_allclose(found.start_s, 0.01 * spoken.start_frame[spoken.valid])
    assert set(found.duration_s) == {0.01 * TIMESTEPS}


def test_a_registered_metric_is_in_the_metrics_file(spoken: Spoken, monkeypatch: pytest.MonkeyPatch) -> None:
    def mean_certainty(scores: Scores) -> float:
        return float(np.mean([block.log_posterior.max(axis=1).mean() for block in scores.blocks()]))

    monkeypatch.setitem(METRICS, "mean_certainty", mean_certainty)
    spoken.save(frame_network())
    metrics = _evaluate(spoken.output)
    assert "mean_certainty" not in metrics["frame"]
    assert metrics["sequence"]["mean_certainty"] < metrics["recording"]["mean_certainty"] + 1


def test_the_interval_of_recordings_is_that_of_their_speakers(spoken: Spoken) -> None:
    spoken.save(frame_network())
    alone = _evaluate(spoken.output)["recording"]
    shared = _evaluate(spoken.output, np.arange(100) % 4)["recording"]
    one = _evaluate(spoken.output, np.zeros(100, np.int64))["recording"]
    assert alone["macro_f1"] == shared["macro_f1"] == one["macro_f1"]
    assert alone["macro_f1_interval"]["speakers"] == alone["n"]
    assert shared["macro_f1_interval"]["speakers"] == 4
    assert one["macro_f1_interval"] == {"low": None, "high": None, "confidence": 0.95, "speakers": 1}
    for found in (alone, shared):
        interval = found["macro_f1_interval"]
        assert 0 < interval["low"] < found["macro_f1"] < interval["high"] <= 1


def test_labels_of_a_model_are_matched_by_name(spoken: Spoken) -> None:
    spoken.save(frame_network())
    expected = _evaluate(spoken.output)
    folder = spoken.output.model("known")
    # the same network with its outputs in another order, and one language that no recording speaks
    network = frame_network()
    turned = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, activation="softmax")])
    weights = np.zeros((3, 4))
    weights[:, [3, 0, 2]] = np.asarray(network.get_weights()[0])
    turned.set_weights([weights, np.array([0, -100.0, 0, 0])])
    (folder / "model.keras").write_bytes(model_bytes(turned))
    model_stores.describe(folder, "frame", ("en", "xx", "fr", "de"))
    found = _evaluate(spoken.output)
    assert found["labels"] == [*LANGUAGES, "xx"]
    for level in ("frame", "sequence", "recording"):
        assert found[level]["macro_f1"] == expected[level]["macro_f1"]
        assert np.array(found[level]["confusion"])[:3, :3].tolist() == expected[level]["confusion"]


def test_a_language_that_only_the_model_knows_is_a_wrong_answer(spoken: Spoken) -> None:
    spoken.save(frame_network())
    model_stores.describe(spoken.output.model("known"), "frame", ("de", "en", "nl"))
    found = _evaluate(spoken.output)["recording"]
    assert found["per_label"]["fr"]["f1"] == 0
    assert sum(row[2] for row in found["confusion"]) == 0  # it knows no fr
    assert sum(row[3] for row in found["confusion"]) > 0
    present = [found["per_label"][label]["f1"] for label in LANGUAGES]
    assert found["macro_f1"] == pytest.approx(np.mean(present))


@pytest.mark.parametrize(("features", "told"), [
    ({"n_mels": 64}, "was trained on features with n_mels 64, but the store has n_mels 128"),
    ({"top_db": None}, "was trained on features with top_db None, but the store has top_db 80.0"),
])  # fmt: skip
def test_a_model_of_other_features_is_refused(spoken: Spoken, features: dict[str, Any], told: str) -> None:
    spoken.save(frame_network())
    model_stores.describe(spoken.output.model("known"), "frame", **features)
    with pytest.raises(IncomparableError, match=told):
        _evaluate(spoken.output)


def test_sequences_of_another_length_matter_to_models_of_sequences_alone(spoken: Spoken) -> None:
    folder = spoken.output.model("known")
    spoken.save(sequence_network())
    model_stores.describe(folder, "sequence", timesteps=TIMESTEPS + 1)
    reason = f"with timesteps {TIMESTEPS + 1}, but the store has timesteps {TIMESTEPS}"
    with pytest.raises(IncomparableError, match=reason):
        _evaluate(spoken.output)
    spoken.save(frame_network())
    model_stores.describe(folder, "frame", timesteps=TIMESTEPS + 1)
    assert _evaluate(spoken.output)["recording"]["n"] > 0


@pytest.mark.parametrize("content", [b"", b"[]", b'{"labels": 1}', None])
def test_a_damaged_description_is_told_in_one_line(spoken: Spoken, content: bytes | None) -> None:
    spoken.save(frame_network())
    labels = spoken.output.model("known") / "labels.json"
    labels.unlink() if content is None else labels.write_bytes(content)
    with pytest.raises(PipelineError, match=r"labels\.json is (missing|damaged \(.*\)); run train again"):
        _evaluate(spoken.output)


def _skewed_network() -> keras.Model:
    """A network of frames that takes each language for the next."""
    model = frame_network()
    model.set_weights([np.roll(np.eye(3), 1, axis=1)])
    return model


def _compare(spoken: Spoken, champion: str | None, **rule: Any) -> tuple[Comparison, Metrics]:
    serving = None if champion is None else spoken.output.model(champion)
    output, settings = spoken.output, PromotionConfig(**rule)
    return compare(output, output.model("known"), serving, settings, EACH_ITS_OWN, seed=1)


def test_two_models_are_judged_on_the_same_recordings(spoken: Spoken) -> None:
    spoken.save(frame_network())
    spoken.save(_skewed_network(), "skewed")
    verdict, metrics = _compare(spoken, "skewed")
    assert verdict.promoted
    assert verdict.challenger_f1 is not None
    assert verdict.challenger_f1.value == metrics.recording.macro_f1
    assert verdict.champion_f1 is not None
    skewed = {"model": "skewed"}
    champion = evaluate(spoken.output, "skewed", spoken.output.model("skewed"), skewed, EACH_ITS_OWN, seed=1)
    assert verdict.champion_f1.value == pytest.approx(champion.recording.macro_f1)
    assert (verdict.recordings, verdict.speakers) == (metrics.recording.n, metrics.recording.n)
    assert not _compare(spoken, "known")[0].promoted  # against itself
    assert _compare(spoken, None)[0].promoted


def test_a_champion_of_other_features_stays_and_the_reason_says_so(spoken: Spoken) -> None:
    spoken.save(frame_network())
    spoken.save(_skewed_network(), "old")
    model_stores.describe(spoken.output.model("old"), "frame", n_mels=64)
    verdict, _ = _compare(spoken, "old")
    assert not verdict.promoted
    assert "but the champion cannot be compared: " in verdict.reason
    assert "features with n_mels 64, but the store has n_mels 128; it stays in service" in verdict.reason


def test_a_champion_that_lacks_a_language_is_compared_and_the_reason_says_so(spoken: Spoken) -> None:
    spoken.save(frame_network())
    spoken.save(frame_network(), "old")
    model_stores.describe(spoken.output.model("old"), "frame", ("de", "en", "nl"))
    verdict, _ = _compare(spoken, "old")
    assert verdict.promoted
    assert "; the champion does not know fr, which counts as F1 0 for it; on the other languages " in verdict.reason
