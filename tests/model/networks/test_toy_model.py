"""A new kind of model needs one file and one line of registration."""

from pathlib import Path

import numpy as np
import pytest

from model.bundle import Bundle
from model.networks.kinds import KINDS
from model.train import train
from pipeline.config import load
from pipeline.run_config import RunConfig
from tests.model.networks.toy_model import Toy
from tests.support import model_stores
from tests.support.model_stores import SAVES_MODELS

pytestmark = [pytest.mark.slow, SAVES_MODELS]

LABEL = np.random.default_rng(5).integers(0, 3, 60)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "toy", Toy)


def test_a_new_kind_is_configured_trained_and_predicts(tmp_path: Path) -> None:
    features = model_stores.audible(LABEL)
    runs = {"train": [(0, 48)], "validation": [(48, 60)]}
    output = model_stores.write(tmp_path, runs, LABEL, features=features)
    config = load(RunConfig, None, ["models.mine.kind=toy", "models.mine.learning_rate=0.05"]).models["mine"]
    assert config == Toy(learning_rate=0.05)
    facts = train(output, "mine", config, seed=1, key="key")
    assert (facts["epochs"], facts["parameters"]) == (4, (3 * 2 + 1) * 6 + (6 + 1) * 3)
    model = Bundle.load(output.model("mine"))
    assert model.description.level == "sequence"
    posteriors = model.log_posteriors(features[48:])
    assert posteriors.shape == (12, 1, 3)
    assert np.mean(posteriors[:, 0].argmax(axis=1) == LABEL[48:]) > 0.6
