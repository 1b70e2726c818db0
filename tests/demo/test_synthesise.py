"""The demo with fewer epochs: languages that only the order of phones tells apart."""

import json
from pathlib import Path

import pytest

from tests.support.whole_system import run

CHANCE = 1 / 3


@pytest.mark.timeout(600)
def test_only_the_model_that_sees_the_order_of_frames_tells_the_languages_apart(tmp_path: Path) -> None:
    result = run(
        "demo", "--out", tmp_path, "--set=models.ann.max_epochs=5", "--set=models.lstm.max_epochs=6", timeout_s=500
    )
    assert result.returncode == 0, result.stderr
    ann, lstm = (json.loads((tmp_path / "metrics" / f"{name}.json").read_text()) for name in ("ann", "lstm"))
    assert abs(ann["frame"]["accuracy"] - CHANCE) < 0.05
    assert lstm["sequence"]["accuracy"] > CHANCE + 0.30
    assert lstm["recording"]["accuracy"] > ann["recording"]["accuracy"]
    assert ann["sequence"]["n"] == lstm["sequence"]["n"] > 2000


def test_the_corpus_alone_is_what_a_demo_begins_with(tmp_path: Path) -> None:
    small = ("--set=demo.speakers_per_language=2", "--set=demo.utterances_per_speaker=1", "--set=demo.utterance_s=0.5")
    result = run("synthesise", "--out", tmp_path, "--executor", "serial", *small)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "corpus").rglob("*.flac"))) == 6
    assert not (tmp_path / "manifest.parquet").exists()
    assert "the corpus is there already" in run("synthesise", "--out", tmp_path, "--executor", "serial", *small).stderr
