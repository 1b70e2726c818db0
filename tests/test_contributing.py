"""The examples of CONTRIBUTING.md work: a copy of the repository is extended as the page says, and used."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import xarray

from tests.support.checkout import ROOT, copy_checkout

pytestmark = pytest.mark.slow

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r'^```(python|diff) title="(\S+)"\n(.*?)^```$', TEXT, re.MULTILINE | re.DOTALL)

SETTINGS = (
    "--set=features.kind=log_energy",
    "--set=features.n_bands=24",
    "--set=models.mine.kind=gru",
    "--set=models.mine.units=8",
    "--set=models.mine.max_epochs=1",
    "--set=models.ann.max_epochs=1",
    "--set=models.lstm=null",
)


def apply(diff: str, text: str) -> str:
    """Return `text` with the added lines of `diff`, whose other lines must be in `text` exactly once."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] == " ")
        assert text.count(before) == 1, f"not there once:\n{before}"
        text = text.replace(before, "".join(line[1:] for line in lines))
    return text


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the repository with all examples."""
    place = copy_checkout(tmp_path_factory.mktemp("repository"))
    for kind, name, block in BLOCKS:
        file = place / name
        assert file.exists() == (kind == "diff"), name
        file.write_text(block if kind == "python" else apply(block, file.read_text("utf-8")), encoding="utf-8")
    if (ROOT / ".mypy_cache").exists():  # of the same files, apart from the examples
        shutil.copytree(ROOT / ".mypy_cache", place / ".mypy_cache")
    return place


@pytest.fixture(scope="module")
def output(extended: Path) -> Path:
    """The output folder of a run on a corpus in the new layout."""
    corpus = extended / "corpus"
    corpus.mkdir()
    rows = [(f"{i}.wav", ("de", "en")[i % 2], f"speaker{i // 2}") for i in range(8)]
    for i, (name, _, _) in enumerate(rows):
        soundfile.write(corpus / name, 0.1 * np.random.default_rng(i).standard_normal(16_000), 16_000)
    with (corpus / "recordings.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "language", "speaker"), *rows])
    command = [sys.executable, "-m", "pipeline.run", "--corpus=corpus", "--out=out", "--executor=serial", *SETTINGS]
    done = subprocess.run(command, cwd=extended, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return extended / "out"


def test_the_page_has_an_example_of_each_extension() -> None:
    folders = {str(Path(name).parent) for kind, name, _ in BLOCKS if kind == "python"}
    assert folders == {"pipeline/corpus/layouts", "pipeline/features", "model/networks", "model/metrics"}


def test_the_layout_gives_languages_and_speakers(output: Path) -> None:
    manifest = pd.read_parquet(output / "manifest.parquet").sort_values("recording_id")
    assert manifest["label"].tolist() == ["de", "en"] * 4
    assert manifest["speaker"].tolist() == [f"speaker{i // 2}" for i in range(8)]


def test_the_store_has_the_features_of_the_front_end_and_the_variable(output: Path) -> None:
    store = xarray.open_zarr(output / "features.zarr", chunks=None).load()
    assert store["features"].sizes["band"] == 24
    assert store["valid"].all()
    np.testing.assert_allclose(store["level"], store["features"].isel(band=0).mean("timestep"), rtol=1e-6)


def test_the_model_is_trained_and_its_metrics_have_the_new_one(output: Path) -> None:
    metrics = json.loads((output / "metrics" / "mine.json").read_text())
    assert 0 < metrics["recording"]["log_loss"] < 10
    done = subprocess.run(
        [sys.executable, "-m", "model.predict", "out/models/mine", "corpus/0.wav", "--json"],
        cwd=output.parent, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)[0]["language"] in {"de", "en"}


@pytest.mark.parametrize("command", [("ruff", "check"), ("ruff", "format", "--check"), ("lint-imports",), ("mypy",)])
def test_the_examples_pass_the_checks(extended: Path, command: tuple[str, ...]) -> None:
    tool, *arguments = command
    programs = Path(sys.executable).parent
    done = subprocess.run([programs / tool, *arguments], cwd=extended, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
