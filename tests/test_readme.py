"""The README's commands and Python code run as they stand there, on small corpora."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from pipeline.run import main

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
LINES = [shlex.split(line, comments=True) for language, block in BLOCKS if not language for line in block.splitlines()]
MAKE = [line for line in LINES if line and line[0] == "make"]
PYTHON = [line for line in LINES if line and Path(line[0]).name == "python"]
PHRASES = [
    phrase.split() for phrase in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```$", "", TEXT, flags=re.M | re.S))
]

SMALL = (
    "--executor=serial",
    "--set=demo.speakers_per_language=3",
    "--set=demo.utterances_per_speaker=1",
    "--set=demo.utterance_s=1",
    "--set=models.ann=null",
    "--set=models.lstm.max_epochs=3",
    "--set=models.lstm.units=8",
    "--set=models.lstm.batch_size=10",
    "--set=models.lstm.learning_rate=0.01",
)


def run(*command: str, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the recordings that the README speaks of, in which its commands have run."""
    place = tmp_path_factory.mktemp("readme")
    seconds = np.arange(16_000) / 16_000
    for language, pitch_hz in {"de": 300, "en": 2_000}.items():
        for number in range(9):
            below = place / "path" / "to" / "recordings" / language / f"{language}{number // 3}"
            below.mkdir(parents=True, exist_ok=True)
            samples = 0.1 * np.sin(2 * np.pi * (pitch_hz + number) * seconds)
            soundfile.write(below / f"{number}.flac", samples, 16_000)
    for name in ("recording.wav", "another.flac"):
        soundfile.write(place / name, samples, 16_000)
    for line in PYTHON:
        run(sys.executable, *line[1:], *(SMALL if "pipeline.run" in line else ()), folder=place)
    return place


@pytest.mark.slow
def test_the_commands_write_what_the_readme_lists(folder: Path) -> None:
    listed = [name.rstrip("/") for name in re.findall(r"^\| `([^`]+)` \|", TEXT, re.MULTILINE)]
    assert "manifest.parquet" in listed
    missing = [name for name in listed if not (folder / "out" / "mine" / name.replace("NAME", "lstm")).exists()]
    assert missing == []


@pytest.mark.slow
@pytest.mark.parametrize("code", [block for language, block in BLOCKS if language == "python"])
def test_the_python_code_runs(folder: Path, code: str) -> None:
    run(sys.executable, "-c", code, folder=folder)


@pytest.mark.parametrize("line", MAKE, ids=shlex.join)
def test_make_has_the_targets(line: list[str]) -> None:
    run(line[0], "--dry-run", *line[1:], folder=ROOT)


@pytest.mark.parametrize("phrase", [words for words in PHRASES if words[0] in main.commands], ids=shlex.join)
def test_stages_have_the_options(phrase: list[str]) -> None:
    stage, *arguments = ["1" if word == "N" else word for word in phrase]
    main.commands[stage].make_context(stage, ["--out", "out/mine", *arguments])


def test_every_option_exists() -> None:
    known = {name for stage in main.commands.values() for each in stage.params for name in each.opts}
    known |= {"--help", "--json", "--workers"}
    assert {words[0] for words in PHRASES if words[0].startswith("--")} <= known
