"""The files of the demo, and a demo with fewer epochs: only the order of phones differs between the languages."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from upath import UPath

from pipeline.config import DemoConfig
from pipeline.demo.speech import utterance
from pipeline.demo.synthesise import recordings, write
from tests.support.whole_system import run

pytestmark = pytest.mark.slow

CHANCE = 1 / 3
CONFIG = DemoConfig(speakers_per_language=2, utterances_per_speaker=2, utterance_s=0.5)


def test_recordings_are_every_file_once() -> None:
    paths = [recording.path.as_posix() for recording in recordings(CONFIG)]
    assert len(paths) == len(set(paths)) == 12
    assert paths[0] == "alba/speaker_00/utterance_000.flac"
    assert paths[-1] == "cino/speaker_01/utterance_001.flac"


def test_defaults_make_an_hour() -> None:
    config = DemoConfig()
    assert len(list(recordings(config))) * config.utterance_s == 3600


def test_written_file_holds_the_utterance(tmp_path: Path) -> None:
    recording = next(recordings(CONFIG))
    write(recording, root=UPath(tmp_path), config=CONFIG)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / recording.path]
    info = soundfile.info(tmp_path / recording.path)
    assert (info.samplerate, info.channels, info.frames) == (16_000, 1, 8000)
    assert (info.format, info.subtype) == ("FLAC", "PCM_16")
    read, _ = soundfile.read(tmp_path / recording.path, dtype="float32")
    expected = utterance(CONFIG, recording.language, recording.speaker, recording.number)
    np.testing.assert_allclose(read, expected, atol=2 / 32768)


def test_written_bytes_are_the_same_every_time(tmp_path: Path) -> None:
    recording = next(recordings(CONFIG))
    write(recording, root=UPath(tmp_path), config=CONFIG)
    first = (tmp_path / recording.path).read_bytes()
    write(recording, root=UPath(tmp_path), config=CONFIG)
    assert (tmp_path / recording.path).read_bytes() == first


@pytest.mark.long
def test_only_the_model_that_sees_the_order_of_frames_tells_the_languages_apart(tmp_path: Path) -> None:
    smaller = ("--set=demo.utterances_per_speaker=8", "--set=demo.utterance_s=3")
    epochs = ("--set=models.ann.max_epochs=2", "--set=models.lstm.max_epochs=10")
    result = run("demo", "--out", tmp_path, "--executor", "serial", *smaller, *epochs)
    assert result.returncode == 0, result.stderr
    ann, lstm = (json.loads((tmp_path / "metrics" / f"{name}.json").read_text()) for name in ("ann", "lstm"))
    assert abs(ann["frame"]["accuracy"] - CHANCE) < 0.05
    assert lstm["sequence"]["accuracy"] > CHANCE + 0.30
    assert lstm["recording"]["accuracy"] > ann["recording"]["accuracy"]
    assert ann["sequence"]["n"] == lstm["sequence"]["n"] > 1000


def test_the_corpus_alone_is_what_a_demo_begins_with(tmp_path: Path) -> None:
    small = ("--set=demo.speakers_per_language=2", "--set=demo.utterances_per_speaker=1", "--set=demo.utterance_s=0.5")
    result = run("synthesise", "--out", tmp_path, "--executor", "serial", *small)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "corpus").rglob("*.flac"))) == 6
    assert not (tmp_path / "manifest.parquet").exists()
    assert (
        "the corpus is complete already" in run("synthesise", "--out", tmp_path, "--executor", "serial", *small).stderr
    )
