"""Training: what is written, which epoch is kept, and that a kill changes nothing."""

import json
import logging
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from sklearn.utils.class_weight import compute_class_weight

from model import archive, bundle, checkpoint
from model import train as train_module
from model.bundle import load_model, version_of
from model.data.store_reader import Block, Store
from model.loader import sequence_dataset
from model.networks.basic import Ann, Lstm
from model.train import train
from model.training_history import TrainingHistory
from pipeline.durable_files import write_atomically
from pipeline.errors import PipelineError
from pipeline.outputs import OutputFolder
from tests.support import model_stores
from tests.support.model_stores import LANGUAGES, SAVES_MODELS, SplitRuns

pytestmark = [SAVES_MODELS, pytest.mark.slow]

RUNS = {"train": [(0, 40)], "validation": [(40, 52)], "test": [(52, 60)]}
LABEL = np.random.default_rng(5).integers(0, 3, 60)
LSTM = Lstm(units=3, batch_size=8, max_epochs=3, learning_rate=0.01)
ANN = Ann(hidden_units=(4, 3), batch_size=32, max_epochs=1)
SEED = 11
TIMINGS = ["wall_s", "steps_per_s", "input_wait"]


def _store(root: Path, runs: SplitRuns = RUNS, label: NDArray[np.int64] = LABEL, **options: Any) -> OutputFolder:
    """A store of chunks so small that a pool of them is less than an epoch."""
    chunks = {"sequences_per_chunk": 2, "chunks_per_shard": 10}
    return model_stores.write(root, runs, label, features=model_stores.audible(label), **chunks, **options)


@pytest.fixture
def output(tmp_path: Path) -> OutputFolder:
    """A store of three languages that a network can learn."""
    return _store(tmp_path)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> OutputFolder:
    """The output of one training of LSTM without any disturbance."""
    output = _store(tmp_path_factory.mktemp("uninterrupted"))
    train(output, "lstm", LSTM, SEED, "key")
    return output


def _history(output: OutputFolder, name: str = "lstm") -> pd.DataFrame:
    return pd.read_csv(str(output.model(name) / "history.csv"))


def _check_same_training(output: OutputFolder, expected: OutputFolder) -> None:
    """Equal histories but for the time, equal weights and optimisers, bit for bit; and the same files."""
    pd.testing.assert_frame_equal(
        _history(output).drop(columns=TIMINGS), _history(expected).drop(columns=TIMINGS), check_exact=True
    )
    for file in ("model.keras", "checkpoints/epoch-0003.keras"):
        one, other = (load_model(each.model("lstm") / file) for each in (output, expected))
        for a, b in zip(one.weights, other.weights, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
        for a, b in zip(one.optimizer.variables, other.optimizer.variables, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    one, other = ((each.model("lstm") / "model.keras").read_bytes() for each in (output, expected))
    assert one == other
    assert _files(output) == _files(expected)


def _files(output: OutputFolder) -> list[str]:
    """Files of the model, but for TensorBoard's, whose names hold the time."""
    folder = Path(str(output.model("lstm")))
    found = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not path.startswith("tensorboard"))


def _evaluated(output: OutputFolder, model: keras.Model, split: str = "validation") -> float:
    """The loss of a sequence model on a split."""
    return float(model.evaluate(sequence_dataset(str(output.store), split, 8, shuffle=False), verbose=0)[0])


def test_training_writes_model_labels_history_and_checkpoint(uninterrupted: OutputFolder) -> None:
    assert _files(uninterrupted) == ["checkpoints/epoch-0003.keras", "history.csv", "labels.json", "model.keras"]


def test_the_history_has_a_row_an_epoch(uninterrupted: OutputFolder) -> None:
    history = _history(uninterrupted)
    assert set(history.columns) == {"epoch", "loss", "accuracy", "val_loss", "val_accuracy", *TIMINGS}
    assert history["epoch"].tolist() == [1, 2, 3]
    assert np.isfinite(history.to_numpy()).all()
    assert (history[["wall_s", "steps_per_s"]] > 0).all(axis=None)
    assert history["input_wait"].between(0, 1).all()
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


def test_labels_json_holds_what_a_recording_needs(uninterrupted: OutputFolder) -> None:
    description = json.loads((uninterrupted.model("lstm") / "labels.json").read_text())
    assert description == {
        "labels": list(LANGUAGES),
        "level": "sequence",
        "timesteps": model_stores.TIMESTEPS,
        "features": Store(str(uninterrupted.store)).attributes["config"]["features"],
    }
    assert description["features"]["n_mfcc"] == model_stores.COEFFICIENTS


def test_training_leaves_events_for_tensorboard(uninterrupted: OutputFolder) -> None:
    events = Path(str(uninterrupted.model("lstm"))).glob("tensorboard/*/events.out.tfevents.*")
    assert {path.parent.name for path in events} == {"train", "validation"}


def test_a_model_of_frames_trains_on_every_frame(output: OutputFolder) -> None:
    shown: list[int | str] = []

    @contextmanager
    def progress(title: str, steps: int) -> Iterator[Callable[[int], None]]:
        shown.extend([title, steps])
        yield shown.append
        shown.append("end")

    result = train(output, "ann", ANN, SEED, "key", progress=progress)
    assert shown == ["train ann, epoch 1", 5, 4, 1, "end"]  # 40 sequences of 4 frames in batches of 32, 4 per block
    timings = {name: _history(output, "ann")[name].mean() for name in ("steps_per_s", "input_wait")}
    assert result == pytest.approx({"epochs": 1, "best_epoch": 1, "parameters": 4 * 4 + 5 * 3 + 4 * 3, **timings})
    description = json.loads((output.model("ann") / "labels.json").read_text())
    assert description["level"] == "frame"
    model = load_model(output.model("ann") / "model.keras")
    loss, accuracy = model.evaluate(
        sequence_dataset(str(output.store), "validation", 32, shuffle=False, frames=True), verbose=0
    )
    last = _history(output, "ann").iloc[-1]
    np.testing.assert_allclose([loss, accuracy], last[["val_loss", "val_accuracy"]].astype(float), rtol=1e-5)


def _unlearnable_validation() -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Labels and features of which those of validation say another language: learning makes that loss larger."""
    features = model_stores.audible(LABEL)
    label = LABEL.copy()
    label[40:52] = (label[40:52] + 1) % 3
    return label, features


def test_the_best_epoch_is_kept_and_patience_ends_the_training(tmp_path: Path) -> None:
    label, features = _unlearnable_validation()
    output = model_stores.write(tmp_path, RUNS, label, features=features)
    config = Lstm(units=3, batch_size=8, max_epochs=50, learning_rate=0.02, patience=2)
    result = train(output, "lstm", config, SEED, "key")
    val_loss = _history(output)["val_loss"]
    best = int(val_loss.argmin())
    assert result["best_epoch"] == best + 1
    assert result["epochs"] == len(val_loss) == best + 1 + 2
    kept = _evaluated(output, load_model(output.model("lstm") / "model.keras"))
    last = _evaluated(output, load_model(output.model("lstm") / "checkpoints" / f"epoch-{len(val_loss):04d}.keras"))
    np.testing.assert_allclose([kept, last], val_loss.iloc[[best, -1]], rtol=1e-5)
    assert last > kept


def test_a_finished_training_is_not_trained_on(uninterrupted: OutputFolder) -> None:
    before = (uninterrupted.model("lstm") / "history.csv").read_bytes()
    assert train(uninterrupted, "lstm", LSTM, SEED, "key")["epochs"] == 3
    assert (uninterrupted.model("lstm") / "history.csv").read_bytes() == before


def test_the_same_seed_gives_the_same_training_bit_for_bit(output: OutputFolder, uninterrupted: OutputFolder) -> None:
    train(output, "lstm", LSTM, SEED, "key")
    _check_same_training(output, uninterrupted)


def test_steps_in_one_call_are_the_steps_one_by_one(
    output: OutputFolder, uninterrupted: OutputFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "MAX_STEPS_PER_CALL", 1)
    train(output, "lstm", LSTM, SEED, "key")
    _check_same_training(output, uninterrupted)


@pytest.mark.parametrize(("batch_size", "steps"), [(100, 10), (512, 8), (4096, 1), (10_000, 1)])
def test_data_are_fetched_for_some_steps_and_no_more_than_a_block(batch_size: int, steps: int) -> None:
    assert train_module.steps_per_call(batch_size, 4096) == steps


def test_another_seed_gives_another_training(output: OutputFolder, uninterrupted: OutputFolder) -> None:
    train(output, "lstm", LSTM.model_copy(update={"max_epochs": 1}), SEED + 1, "key")
    assert _history(output)["loss"].iloc[0] != _history(uninterrupted)["loss"].iloc[0]


# a training that stops in the middle of its third epoch, and never goes on
STOPS = """
import sys, time
from pathlib import Path
from model.networks.basic import Lstm
from model.data.store_reader import Store
from model.train import train
from model.training_history import TrainingHistory
from pipeline.outputs import OutputFolder

original = Store.shuffled_blocks

def stops(self, split, seed, epoch, pool_chunks):
    for number, block in enumerate(original(self, split, seed, epoch, pool_chunks)):
        if (epoch, number) == (2, 1):
            Path(sys.argv[1], "stopped").touch()
            time.sleep(1000)
        yield block

Store.shuffled_blocks = stops
train(OutputFolder.at(sys.argv[1]), "lstm", Lstm.model_validate_json(sys.argv[2]), int(sys.argv[3]), "key")
"""


def test_a_killed_and_continued_training_equals_an_uninterrupted_one(
    output: OutputFolder, uninterrupted: OutputFolder
) -> None:
    command = [sys.executable, "-c", STOPS, str(output.root), LSTM.model_dump_json(), str(SEED)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        while not (output.root / "stopped").exists():
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert _history(output)["epoch"].tolist() == [1, 2]
    assert train(output, "lstm", LSTM, SEED, "key")["epochs"] == 3
    _check_same_training(output, uninterrupted)


class PowerCutError(BaseException):
    """Ends a training where nothing can catch it."""


@pytest.mark.parametrize(("writes", "repeated"), [(5, []), pytest.param(4, [1], marks=pytest.mark.long)])
def test_a_training_cut_short_between_two_writes_repeats_at_most_that_epoch(
    output: OutputFolder,
    uninterrupted: OutputFolder,
    monkeypatch: pytest.MonkeyPatch,
    writes: int,
    repeated: list[int],
) -> None:
    # the cut is before or after the write of the second epoch's state
    written: list[str] = []
    write_atomically = checkpoint.write_atomically

    def write_or_cut(path: Any, content: bytes) -> None:
        if len(written) == writes:
            raise PowerCutError
        write_atomically(path, content)
        written.append(path.name)

    epochs: list[tuple[int, int]] = []
    shuffled_blocks = Store.shuffled_blocks

    def noted(self: Store, split: str, seed: int, epoch: int, pool_chunks: int) -> Iterator[Block]:
        epochs.append((seed, epoch))
        return shuffled_blocks(self, split, seed, epoch, pool_chunks)

    monkeypatch.setattr(Store, "shuffled_blocks", noted)
    with monkeypatch.context() as patch:
        for module in (bundle, checkpoint):
            patch.setattr(module, "write_atomically", write_or_cut)
        with pytest.raises(PowerCutError):
            train(output, "lstm", LSTM, SEED, "key")
    first = ["epoch-0001.keras", "model.keras", "labels.json", "history.csv"]
    assert written == [*first, "epoch-0002.keras"][:writes]
    train(output, "lstm", LSTM, SEED, "key")
    _check_same_training(output, uninterrupted)
    assert epochs == [(SEED, epoch) for epoch in (0, 1, *repeated, 2)]


@pytest.mark.parametrize("file", ["checkpoints/epoch-0003.keras", "model.keras"])
def test_a_damaged_state_or_model_is_made_again_with_the_same_weights(
    uninterrupted: OutputFolder, tmp_path: Path, file: str
) -> None:
    output = OutputFolder.at(str(shutil.copytree(str(uninterrupted.root), tmp_path / "copy")))
    damaged = Path(str(output.model("lstm") / file))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert train(output, "lstm", LSTM, SEED, "key")["epochs"] == 3
    _check_same_training(output, uninterrupted)


def test_another_key_trains_afresh(output: OutputFolder, caplog: pytest.LogCaptureFixture) -> None:
    train(output, "ann", ANN, SEED, "key")
    first = _history(output, "ann")
    leftover = output.model("ann") / "left over"
    leftover.write_text("of the other settings")
    (events,) = output.model("ann").glob("tensorboard/train/*")
    network, at_exchange = (output.model("ann") / "model.keras").read_bytes(), []
    with caplog.at_level(logging.INFO, "model.checkpoint"):
        result = train(
            output, "ann", ANN.model_copy(update={"learning_rate": 0.05}), SEED, "another key",
            replacing=lambda: at_exchange.append((output.model("ann") / "model.keras").read_bytes()),
        )  # fmt: skip
    assert "train ann: data or settings have changed, training starts again; the present model stays" in caplog.text
    assert at_exchange == [network]
    assert not events.exists()
    assert len(list(output.model("ann").glob("tensorboard/train/*"))) == 1
    assert result["epochs"] == 1
    assert _history(output, "ann")["loss"].iloc[0] != first["loss"].iloc[0]
    assert not leftover.exists()
    (state,) = output.model("ann").glob("checkpoints/*")
    assert archive.read(state, "")["key.txt"] == b"another key"


@pytest.mark.parametrize("valid", [None, np.arange(44) < 40], ids=["no sequence", "no valid sequence"])
def test_without_validation_the_training_loss_decides_and_a_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, valid: NDArray[np.bool_] | None
) -> None:
    runs = {"train": [(0, 40)]} if valid is None else {"train": [(0, 40)], "validation": [(40, 44)]}
    output = _store(tmp_path, runs, LABEL[: 40 if valid is None else 44], valid=valid)
    with caplog.at_level(logging.WARNING, "model.train"):
        result = train(output, "lstm", LSTM.model_copy(update={"learning_rate": 0.5}), SEED, "key")
    assert [record.levelname for record in caplog.records if "no validation" in record.message] == ["WARNING"]
    history = _history(output)
    assert "val_loss" not in history.columns
    assert result["best_epoch"] == int(history["loss"].argmin()) + 1


def test_class_weights_make_every_language_count_the_same(tmp_path: Path) -> None:
    label = np.repeat([0, 1, 2], [2, 12, 6])
    store = Store(str(_store(tmp_path, {"train": [(0, 20)]}, label).store))
    weights = train_module._class_weights(store)
    np.testing.assert_allclose(list(weights.values()), compute_class_weight("balanced", classes=np.arange(3), y=label))
    assert weights == pytest.approx({0: 20 / 6, 1: 20 / 36, 2: 20 / 18})


def test_a_language_without_training_sequences_weighs_one_and_changes_no_other(tmp_path: Path) -> None:
    label = np.repeat([0, 2, 1], [5, 15, 3])
    store = Store(str(_store(tmp_path, {"train": [(0, 20)], "test": [(20, 23)]}, label).store))
    assert train_module._class_weights(store) == pytest.approx({0: 2.0, 1: 1.0, 2: 20 / 30})


@pytest.mark.parametrize("balance", [True, False])
def test_weights_are_used_where_the_settings_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, balance: bool
) -> None:
    output = _store(tmp_path, {"train": [(0, 20)]}, np.repeat([0, 1, 2], [2, 12, 6]))
    given: list[Any] = []

    def noted(self: keras.Model, *arguments: Any, **options: Any) -> None:
        given.append(options["class_weight"])
        raise PowerCutError

    monkeypatch.setattr(keras.Model, "fit", noted)
    with pytest.raises(PowerCutError):
        train(output, "lstm", LSTM.model_copy(update={"balance_labels": balance}), SEED, "key")
    assert given == [pytest.approx({0: 20 / 6, 1: 20 / 36, 2: 20 / 18}) if balance else None]


def test_one_language_with_valid_sequences_is_refused(tmp_path: Path) -> None:
    label = np.repeat([0, 1], 10)
    output = _store(tmp_path, {"train": [(0, 20)]}, label, valid=label == 1)
    with pytest.raises(PipelineError) as refused:
        train(output, "lstm", LSTM, SEED, "key")
    assert str(refused.value) == (
        "training needs at least two languages with valid sequences, the store has ['en']; see the ledger for what "
        "failed"
    )
    assert refused.value.exit_code == 1
    assert not output.model("lstm").exists()


def test_a_store_without_valid_sequences_is_refused(tmp_path: Path) -> None:
    output = _store(tmp_path, {"train": [(0, 6)]}, LABEL[:6], valid=[False] * 6)
    with pytest.raises(PipelineError, match="at least two languages with valid sequences, the store has none"):
        train(output, "lstm", LSTM, SEED, "key")


@pytest.mark.parametrize("which", [0, -1])
def test_a_damaged_shard_of_training_or_validation_is_named_in_one_line(output: OutputFolder, which: int) -> None:
    shards = sorted((output.store / "features/c").glob("*/0/0"), key=lambda path: int(path.parts[-3]))
    shards[which].write_bytes(b"no shard")
    with pytest.raises(PipelineError) as refused:
        train(output, "lstm", LSTM, SEED, "key")
    named, what = str(refused.value).split(" cannot be read: ")
    assert named.startswith(f"{shards[which]} (shard ")
    assert what == "the file is too short; run verify to see what else"


def test_two_languages_are_learnt(tmp_path: Path) -> None:
    label = LABEL % 2
    output = model_stores.write(tmp_path, RUNS, label, features=model_stores.audible(label), languages=("de", "en"))
    train(output, "two", LSTM.model_copy(update={"max_epochs": 6, "learning_rate": 0.05}), SEED, "key")
    model = load_model(output.model("two") / "model.keras")
    assert model.output_shape == (None, 1)
    history = _history(output, "two")
    assert history["accuracy"].iloc[-1] > 0.75
    assert history["loss"].iloc[-1] < history["loss"].iloc[0]


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(("losses", "best", "stalled"), [
    ([], None, False),
    ([1.0], 1, False),
    ([1.0, 0.5, 0.6], 2, False),
    ([1.0, 0.5, 0.5, 0.6], 2, True),
    ([1.0, NAN, 0.5, NAN], 3, False),
    ([1.0, NAN, 0.5, NAN, INF], 3, True),
    ([NAN, INF], None, False),
    ([NAN, INF, NAN], None, True),
])  # fmt: skip
def test_the_best_epoch_has_the_smallest_finite_loss(losses: list[float], best: int | None, stalled: bool) -> None:
    rows = tuple({"epoch": i + 1, "loss": 0.1, "val_loss": loss} for i, loss in enumerate(losses))
    history = TrainingHistory(rows)
    assert (history.best_epoch, history.stalled(patience=2)) == (best, stalled)


@pytest.fixture
def predecessor(output: OutputFolder) -> dict[str, bytes]:
    """The files of a model of other settings, by their names below the output folder."""
    folder = output.model("lstm")
    for name in ("model.keras", "labels.json", "history.csv", "checkpoints/key.txt", "tensorboard/train/events"):
        write_atomically(folder / name, name.encode())
    return _contents(output)


def _contents(output: OutputFolder) -> dict[str, bytes]:
    files = (path for path in Path(str(output.root / "models")).rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in files}


@pytest.mark.parametrize("validated", [True, False])
def test_a_training_that_diverges_fails_and_changes_nothing(
    output: OutputFolder, predecessor: dict[str, bytes], tmp_path: Path, validated: bool
) -> None:
    if not validated:  # the mean loss of an epoch of one step is finite, and its network is not
        output = _store(tmp_path / "other", {"train": [(0, 60)]})
    config = LSTM.model_copy(
        update={"learning_rate": 1e39, "patience": 1, **({} if validated else {"batch_size": 60})}
    )
    with pytest.raises(PipelineError) as failed:
        train(output, "lstm", config, SEED, "key")
    kept = f"; the model in {output.model('lstm')} is unchanged" if validated else ""
    assert str(failed.value) == (
        f"train lstm: no epoch had a finite loss; lower models.lstm.learning_rate (1e+39){kept}"
    )
    assert failed.value.exit_code == 1
    assert _contents(output) == (predecessor if validated else {})


def test_a_network_that_no_memory_holds_is_one_line_and_changes_nothing(
    output: OutputFolder, predecessor: dict[str, bytes]
) -> None:
    config = LSTM.model_copy(update={"units": 10**9})
    with pytest.raises(PipelineError) as failed:
        train(output, "lstm", config, SEED, "key")
    assert failed.value.exit_code == 2
    assert str(failed.value).startswith("train lstm: 4e+18 parameters need ")
    assert str(failed.value).endswith(" GiB; lower the sizes of the layers in models.lstm")
    assert _contents(output) == predecessor


@pytest.mark.long  # TensorFlow waits ten seconds for memory
def test_running_out_of_memory_is_one_line_and_changes_nothing(
    output: OutputFolder, predecessor: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_module, "machine_memory_bytes", lambda: 2**60)
    config = ANN.model_copy(update={"hidden_units": (10**6, 10**9)})  # 4 PB
    with pytest.raises(PipelineError) as failed:
        train(output, "lstm", config, SEED, "key")
    assert str(failed.value) == (
        "train lstm: TensorFlow ran out of memory; lower models.lstm.batch_size (32) or the number of units; the "
        f"model in {output.model('lstm')} is unchanged"
    )
    assert _contents(output) == predecessor


def test_an_interrupt_in_the_first_epoch_changes_nothing(output: OutputFolder, predecessor: dict[str, bytes]) -> None:
    shown: list[str] = []

    def interrupt(steps: int) -> None:
        raise KeyboardInterrupt

    @contextmanager
    def progress(title: str, steps: int) -> Iterator[Callable[[int], None]]:
        try:
            yield interrupt
        finally:
            shown.append(f"{title} ends")

    with pytest.raises(KeyboardInterrupt):
        train(output, "lstm", LSTM, SEED, "key", progress=progress)
    assert shown == ["train lstm, epoch 1 ends"]
    assert _contents(output) == predecessor


def test_the_same_training_gives_the_same_version_whatever_was_built_before(tmp_path: Path) -> None:
    one, other = _store(tmp_path / "one"), _store(tmp_path / "other")
    train(one, "lstm", LSTM, SEED, "key")
    train(other, "ann", ANN, SEED, "key")
    train(other, "lstm", LSTM, SEED, "key")
    assert version_of(one.model("lstm")) == version_of(other.model("lstm")) != version_of(other.model("ann"))
