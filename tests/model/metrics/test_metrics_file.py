"""metrics/NAME.json: what is written is read again, and a damaged file is refused in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from model.metrics.metrics_file import Metrics
from pipeline.errors import PipelineError


def content() -> dict[str, Any]:
    level = {"n": 1, "accuracy": 1.0, "macro_f1": 1.0, "confusion": [[1, 0], [0, 0]], "eer": 0.25, "per_label": {}}
    interval = {"low": None, "high": None, "confidence": 0.95, "speakers": 1}
    return {
        "model": "lstm", "labels": ["č", "日本"], "sequence": level,
        "recording": {**level, "macro_f1_interval": interval}, "labels_without_test": [],
        "labels_without_validation": ["č"], "example": None, "store": {"config_hash": "c", "manifest_digest": "m"},
    }  # fmt: skip


def test_a_file_has_what_was_set_and_nothing_else(tmp_path: Path) -> None:
    metrics, path = Metrics.model_validate(content()), UPath(tmp_path) / "lstm.json"
    metrics.write(path)
    assert json.loads(path.read_text(encoding="utf-8")) == content()
    assert Metrics.read(path) == metrics
    assert list(metrics.levels) == ["sequence", "recording"]
    assert metrics.sequence.values == {"accuracy": 1.0, "macro_f1": 1.0, "eer": 0.25}


@pytest.mark.parametrize("change", [
    {"more": 1}, {"sequence": {}}, {"recording": {**content()["recording"], "eer": "high"}}, {"labels": None},
])  # fmt: skip
def test_a_damaged_file_is_refused_in_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    path = UPath(tmp_path) / "lstm.json"
    path.write_text(json.dumps({**content(), **change}))
    with pytest.raises(PipelineError) as error:
        Metrics.read(path)
    assert str(error.value).startswith(f"{path} is damaged (")
    assert str(error.value).endswith("); run evaluate again")
    assert "\n" not in str(error.value)
