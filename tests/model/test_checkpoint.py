"""The exchange of a model for its successor: after a cut at any write, the folder has a usable model."""

import logging
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from upath import UPath

from model import bundle, checkpoint
from model.bundle import Bundle, Description
from model.checkpoint import CheckpointFolder
from model.training_history import TrainingHistory
from pipeline.errors import PipelineError
from tests.support import model_stores
from tests.support.damage import DAMAGES, damage
from tests.support.known_networks import frame_network
from tests.support.model_stores import LANGUAGES, SAVES_MODELS, TIMESTEPS

pytestmark = SAVES_MODELS

FEATURES = model_stores.config(TIMESTEPS, 3, 4, 2).features.model_dump()
EPOCH = {"epoch": 1, "loss": 0.5}
WRITES = 4
"""Files that the first epoch of a training writes."""


class CutError(BaseException):
    """Ends a process where nothing can catch it."""


def _files(folder: Path, key: str, labels: tuple[str, ...] = LANGUAGES) -> CheckpointFolder:
    description = Description(labels=labels, level="frame", timesteps=TIMESTEPS, features=FEATURES)
    return CheckpointFolder(UPath(folder), key, description, lambda: None)


def _network(scale: float, labels: int = 3) -> keras.Model:
    model = frame_network(labels)
    model.set_weights([scale * np.eye(labels)])
    return model


def _scale(folder: Path) -> float:
    """What tells the networks of a folder apart."""
    return float(Bundle.load(UPath(folder)).network.get_weights()[0][0, 0])


@pytest.fixture(name="folder")
def folder_with_a_model(tmp_path: Path) -> Path:
    """The folder of a model that was trained for two epochs."""
    files = _files(tmp_path / "lstm", "old")
    files.save(_network(1), TrainingHistory((EPOCH,)))
    files.save(_network(2), TrainingHistory((EPOCH, {"epoch": 2, "loss": 0.4})))
    (tmp_path / "lstm" / "tensorboard").mkdir()
    (tmp_path / "lstm" / "tensorboard" / "events").write_bytes(b"")
    return tmp_path / "lstm"


def _save_cut(monkeypatch: pytest.MonkeyPatch, files: CheckpointFolder, network: keras.Model, writes: int) -> None:
    """Save a first epoch that is cut after a number of writes."""
    left = [writes]
    write_atomically = checkpoint.write_atomically

    def write_or_cut(path: Any, content: bytes) -> None:
        if not left[0]:
            raise CutError
        left[0] -= 1
        write_atomically(path, content)

    with monkeypatch.context() as patch:
        for module in (bundle, checkpoint):
            patch.setattr(module, "write_atomically", write_or_cut)
        with pytest.raises(CutError):
            files.save(network, TrainingHistory((EPOCH,)))


def _names(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _resumed_scale(folder: Path, key: str) -> float | None:
    """The network from which the training of `key` continues, None if it starts again."""
    saved = _files(folder, key).newest()[0]
    return float(saved.load().get_weights()[0][0, 0]) if saved else None


@pytest.mark.parametrize("writes", range(WRITES))
def test_a_model_is_there_after_a_cut_at_any_write(folder: Path, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    files = _files(folder, "new")
    _save_cut(monkeypatch, files, _network(3), writes)
    assert _scale(folder) == (2 if writes < 2 else 3)
    # each training continues from its own epochs alone
    assert _resumed_scale(folder, "old") == 2
    assert _resumed_scale(folder, "new") == (3 if writes else None)
    if not files.resumed():
        files.save(_network(3), TrainingHistory((EPOCH,)))
    assert _scale(folder) == 3
    assert _names(folder) == {"model.keras", "labels.json", "history.csv", "checkpoints/epoch-0001.keras"}
    assert (folder / "history.csv").read_text() == "epoch,loss\n1,0.5\n"


def test_a_network_is_not_used_with_the_labels_of_its_predecessor(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # as many languages, of which one is another
    files = _files(folder, "new", ("de", "en", "nl"))
    _save_cut(monkeypatch, files, _network(3), 2)
    with pytest.raises(PipelineError) as refused:
        _scale(folder)
    assert str(refused.value) == (
        f"{folder / 'labels.json'} is not what training wrote together with model.keras; run train again"
    )
    assert files.resumed()
    assert _scale(folder) == 3


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize(("name", "epoch"), [
    ("model.keras", None), ("labels.json", 3), ("history.csv", 3), ("checkpoints/epoch-0003.keras", 2),
])  # fmt: skip
def test_a_training_continues_from_its_newest_whole_epoch_and_restores_the_rest(
    folder: Path, caplog: pytest.LogCaptureFixture, kind: str, name: str, epoch: int | None
) -> None:
    files = _files(folder, "old")
    losses = (0.5, 0.4, 0.6)
    history = TrainingHistory(tuple(
        {"epoch": i, "loss": loss, "wall_s": i / 3} for i, loss in enumerate(losses, 1)
    ))  # fmt: skip
    networks = {epochs: _network(epochs) for epochs in (2, 3)}
    for epochs, network in networks.items():
        files.save(network, TrainingHistory(history.rows[:epochs]))
    before = {each: (folder / each).read_bytes() for each in _names(folder)}
    damage(folder / name, kind)
    with caplog.at_level(logging.INFO, "model.checkpoint"):
        saved = files.resumed()
    (line,) = (record.getMessage() for record in caplog.records)
    if epoch is None:
        assert saved is None
        assert line == f"train lstm: {folder / name} missing or damaged; training starts again"
        return
    assert saved is not None
    assert saved.history.rows == history.rows[:epoch]
    lost = f"{folder / name} missing or damaged; " if epoch == 2 and kind != "deleted" else ""
    assert line == f"train lstm: {lost}continuing after epoch {epoch}"
    assert float(saved.load().get_weights()[0][0, 0]) == epoch
    if epoch == 2:
        files.save(networks[3], history)
    assert {each: (folder / each).read_bytes() for each in _names(folder)} == before


def test_nothing_is_saved_before_a_finite_loss(folder: Path) -> None:
    replaced: list[str] = []
    files = CheckpointFolder(UPath(folder), "new", _files(folder, "new").description, lambda: replaced.append("old"))
    rows = ({"epoch": 1, "loss": np.nan}, {"epoch": 2, "loss": np.inf}, {"epoch": 3, "loss": 0.5})
    for epochs in (1, 2, 3):
        assert _scale(folder) == 2
        assert replaced == []
        files.save(_network(epochs + 2), TrainingHistory(rows[:epochs]))
    assert _scale(folder) == 5
    assert replaced == ["old"]
    assert _resumed_scale(folder, "new") == 5


def test_a_model_behind_a_url_is_exchanged(memory_url: str) -> None:
    folder = UPath(memory_url) / "lstm"
    for key, scale in (("old", 1), ("new", 2)):
        description = Description(labels=LANGUAGES, level="frame", timesteps=TIMESTEPS, features=FEATURES)
        files = CheckpointFolder(folder, key, description, lambda: None)
        files.save(_network(scale), TrainingHistory((EPOCH,)))
        assert files.newest()[0] == files.resumed()
        assert Bundle.load(folder).network.get_weights()[0][0, 0] == scale
