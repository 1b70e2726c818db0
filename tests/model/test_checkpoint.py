"""The exchange of a model for its successor: after a cut at any write, the folder has a usable model."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from upath import UPath

from model import bundle, checkpoint
from model.bundle import Bundle, Description
from model.checkpoint import CheckpointFolder, TrainingHistory
from pipeline.errors import PipelineError
from tests.support import model_stores
from tests.support.known_networks import frame_network
from tests.support.model_stores import LANGUAGES, SAVES_MODELS, TIMESTEPS

pytestmark = SAVES_MODELS

FEATURES = model_stores.config(TIMESTEPS, 3, 4, 2).features.model_dump()
EPOCH = {"epoch": 1, "loss": 0.5}
WRITES = 5
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


@pytest.mark.parametrize("writes", range(WRITES))
def test_a_model_is_there_after_a_cut_at_any_write(folder: Path, monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    files = _files(folder, "new")
    _save_cut(monkeypatch, files, _network(3), writes)
    assert _scale(folder) == (2 if writes < 3 else 3)
    # neither training continues from a mixture
    assert files.finished().epochs == _files(folder, "old").finished().epochs == 0
    files.save(_network(4), TrainingHistory((EPOCH,)))
    assert _scale(folder) == 4
    assert files.finished().epochs == 1
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "model.keras", "labels.json", "history.csv", "checkpoints/key.txt", "checkpoints/epoch-0001.keras",
    }  # fmt: skip


def test_a_cut_between_labels_and_network_of_other_languages_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = _files(folder, "new", (*LANGUAGES, "nl"))
    _save_cut(monkeypatch, files, _network(3, 4), 2)
    with pytest.raises(PipelineError) as refused:
        _scale(folder)
    assert str(refused.value) == (
        f"{folder}: model.keras and labels.json are of different trainings (3 outputs, 4 labels); run train again"
    )
    files.save(_network(3, 4), TrainingHistory((EPOCH,)))
    assert _scale(folder) == 3


@pytest.mark.parametrize("missing", ["model.keras", "labels.json", "checkpoints/epoch-0002.keras"])
def test_a_training_without_one_of_its_files_starts_again(folder: Path, missing: str) -> None:
    files = _files(folder, "old")
    assert files.finished().epochs == 2
    (folder / missing).unlink()
    assert files.finished().epochs == 0


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
    assert files.finished().epochs == 3


def test_a_model_behind_a_url_is_exchanged(memory_url: str) -> None:
    folder = UPath(memory_url) / "lstm"
    for key, scale in (("old", 1), ("new", 2)):
        description = Description(labels=LANGUAGES, level="frame", timesteps=TIMESTEPS, features=FEATURES)
        files = CheckpointFolder(folder, key, description, lambda: None)
        files.save(_network(scale), TrainingHistory((EPOCH,)))
        assert files.finished().epochs == 1
        assert Bundle.load(folder).network.get_weights()[0][0, 0] == scale
