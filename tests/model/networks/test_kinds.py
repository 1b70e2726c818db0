"""Models by name and kind: what the settings accept, and how they refuse the rest."""

import subprocess
import sys
from pathlib import Path

import pydantic
import pytest

from model.networks.basic import Ann, Lstm
from model.networks.kinds import KINDS
from pipeline.config import load
from pipeline.errors import UsageError
from pipeline.run_config import RunConfig

LSTM_KEYS = "kind, batch_size, max_epochs, patience, learning_rate, balance_labels, units"
NAMES = "a model's name consists of letters, digits, '_', '-' and '.', and does not begin with '.' or 'as-of-'"


def _read(*overrides: str) -> RunConfig:
    return load(RunConfig, None, overrides)


def test_the_default_models_are_ann_and_lstm() -> None:
    assert _read().models == {"ann": Ann(), "lstm": Lstm()}


def test_a_setting_of_a_default_model_changes_and_a_null_leaves_one_out() -> None:
    assert _read("models.lstm.units=200", "models.ann=null").models == {"lstm": Lstm(units=200)}


def test_a_new_name_with_a_kind_adds_a_model() -> None:
    models = _read("models.big.kind=lstm", "models.big.units=300").models
    assert list(models) == ["ann", "lstm", "big"]
    assert models["big"] == Lstm(units=300)


def test_settings_of_one_kind_do_not_apply_to_another() -> None:
    assert _read("models.lstm.kind=ann", "models.lstm.max_epochs=1").models["lstm"] == Ann(max_epochs=1)


def test_models_in_yaml_are_merged_with_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("models: {lstm: null, Big_1.5-x: {kind: lstm, units: 3}}\npromotion: {model: Big_1.5-x}\n")
    config = load(RunConfig, file, ["models.ann.max_epochs=1"])
    assert config.models == {"ann": Ann(max_epochs=1), "Big_1.5-x": Lstm(units=3)}
    assert config.promotion.model == "Big_1.5-x"


def test_settings_are_read_back_as_they_were_written() -> None:
    config = _read("models.big.kind=lstm", "models.big.units=300", "models.ann.hidden_units=[3, 4]")
    assert config.model_dump(mode="json")["models"]["big"]["units"] == 300
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(("overrides", "message"), [
    (["models.ltsm.units=3"], "models.ltsm: kind is missing; choose one of ann, lstm"),
    (["models.big.kind=gru"], "models.big.kind = gru: there is no such kind of model; allowed here: ann, lstm"),
    (["models.big.kind=[x]"], "models.big.kind = [x]: there is no such kind of model; allowed here: ann, lstm"),
    (["models.lstm.unts=3"], f"models.lstm.unts = 3: there is no such key; allowed here: {LSTM_KEYS}"),
    (["models.lstm.units=0"], "models.lstm.units = 0: input should be greater than or equal to 1"),
    (["models.lstm.units=0", "models.ann.patience=0"],
     "models.ann.patience = 0: input should be greater than or equal to 1 (and 1 more)"),
    (["models.lstm=3"], "models.lstm = 3: expected keys with values below it"),
    (["models=3"], "models = 3: expected keys with values below it"),
    (["models.lstm.units=true"], "models.lstm.units = true: expected a whole number"),
    (["models.lstm.learning_rate=true"], "models.lstm.learning_rate = true: expected a number"),
    (["models.lstm.learning_rate=.inf"], "models.lstm.learning_rate = .inf: expected a finite number"),
    (["models.lstm.batch_size=10000000000"],
     "models.lstm.batch_size = 10000000000: input should be less than or equal to 1000000000"),
    (["models.ann.hidden_units=[64, true]"], "models.ann.hidden_units = [64, true]: expected a whole number"),
    (["models.ann.hidden_units=[64]"], "models.ann.hidden_units.1 = [64]: there are too few values"),
    (["models.ann.hidden_units=[1, 2, 3]"], "models.ann.hidden_units = [1, 2, 3]: there are too many values"),
    (["models.ann.hidden_units=64"], "models.ann.hidden_units = 64: expected a list"),
    (["promotion.model=3"], "promotion.model = 3: expected text"),
    (["models.as-of-x.kind=lstm"], f"models.as-of-x: {NAMES}"),
    (["models={.x: {kind: lstm}}"], f"models..x: {NAMES}"),
    (["models={a/b: null}"], f"models.a/b = null: {NAMES}"),
    (["models={ü: {kind: lstm}}"], f"models.ü: {NAMES}"),
    (["models={1: {kind: lstm}}"], f"models.1: {NAMES}"),
    (["promotion.model=rnn"], "promotion: model rnn is not configured; choose one of ann, lstm"),
    (["models.ann=null", "promotion.model=ann"], "promotion: model ann is not configured; choose one of lstm"),
])  # fmt: skip
def test_other_settings_are_refused_in_one_line(overrides: list[str], message: str) -> None:
    with pytest.raises(UsageError) as refused:
        _read(*overrides)
    assert str(refused.value) == message


def test_the_default_of_promotion_may_be_left_out() -> None:
    assert _read("models.lstm=null").promotion.model == "lstm"


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_kind_is_registered_under_the_name_in_its_settings(kind: str) -> None:
    assert KINDS[kind].model_fields["kind"].default == kind
    with pytest.raises(pydantic.ValidationError, match="kind"):
        KINDS[kind](kind="another")


def test_settings_are_validated_without_tensorflow() -> None:
    program = "import sys, pipeline.run_config; sys.exit(bool({'keras', 'tensorflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
