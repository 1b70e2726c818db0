"""Several models of one kind in one run: trained, evaluated, compared and promoted by the names of the user."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.support.whole_system import SAMPLE_RATE_HZ, run

pytestmark = pytest.mark.slow

UNITS = {"small": 3, "middle": 6, "big": 12}
SETTINGS = (
    "--executor=serial", "--set=store.sequences_per_chunk=4", "--set=store.chunks_per_shard=2",
    "--set=models.ann=null", "--set=models.lstm=null",
    *(f"--set=models.{name}={{kind: lstm, units: {units}, max_epochs: 6, batch_size: 10, learning_rate: 0.01}}"
      for name, units in UNITS.items()),
)  # fmt: skip


def _write_tones(root: Path) -> Path:
    """Write three speakers per language, whose tones are easy to tell apart."""
    random = np.random.default_rng(0)
    time_s = np.arange(2 * SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    for language, hz in (("de", 300), ("en", 2500)):
        for speaker in range(3):
            folder = root / language / f"{language}_{speaker}"
            folder.mkdir(parents=True)
            for number in range(3):
                samples = 0.3 * np.sin(2 * np.pi * hz * time_s) + 0.01 * random.standard_normal(len(time_s))
                soundfile.write(folder / f"{number}.flac", samples, SAMPLE_RATE_HZ)
    return root


@pytest.mark.long
def test_three_lstms_are_trained_compared_and_promoted(tmp_path: Path) -> None:
    corpus, out = _write_tones(tmp_path / "corpus"), tmp_path / "out"
    result = run("all", "--corpus", corpus, "--out", out, *SETTINGS)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in (out / "models").iterdir()} == set(UNITS)
    stages = json.loads((out / "run.json").read_text())["stages"]
    for name, units in UNITS.items():
        # an LSTM over 40 features, and one sigmoid unit over 20 timesteps
        assert stages[f"train/{name}"]["parameters"] == 4 * units * (40 + units + 1) + 20 * units + 1
        assert json.loads((out / "metrics" / f"{name}.json").read_text())["recording"]["n"] > 0
        assert f"confusion_{name}_recording.png" in {path.name for path in (out / "report").iterdir()}
    page = (out / "report" / "index.html").read_text()
    assert all(f'<th scope="row">{name}</th>' in page for name in UNITS)

    unknown = run("promote", "--out", out, *SETTINGS)
    assert unknown.returncode == 2
    assert unknown.stderr.splitlines()[-1].endswith(
        "promotion.model = 'lstm': this model is not configured; choose one of small, middle, big"
    )
    promoted = run("promote", "--out", out, *SETTINGS, "--set=promotion.model=big", "--set=promotion.confidence=0")
    assert promoted.returncode == 0, promoted.stderr
    registry = json.loads((out / "registry" / "registry.json").read_text())
    (decision,) = registry["decisions"]
    assert (decision["kind"], decision["request"]["model"]) == ("promoted", "big")
    champion = out / "registry" / registry["champion"] / "model.keras"
    assert champion.read_bytes() == (out / "models" / "big" / "model.keras").read_bytes()
