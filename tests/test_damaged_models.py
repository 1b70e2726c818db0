"""Files of models, metrics and the registry, damaged in every way: each command names them or makes them again."""

import json
import random
import shutil
from datetime import UTC, datetime
from pathlib import Path

import click.testing
import numpy as np
import pytest
import soundfile

from model import predict
from pipeline import run
from pipeline.errors import PipelineError
from tests.support.damage import DAMAGES, damage, flipped
from tests.support.model_stores import SAVES_MODELS
from tests.support.whole_system import SAMPLE_RATE_HZ

pytestmark = [pytest.mark.long, SAVES_MODELS]

SETTINGS = (
    "--executor=serial", "--set=features.n_mfcc=13", "--set=store.timesteps=10", "--set=store.sequences_per_chunk=4",
    "--set=store.chunks_per_shard=2", "--set=models.ann=null", "--set=models.lstm.units=3",
    "--set=models.lstm.batch_size=8", "--set=models.lstm.max_epochs=3", "--set=models.lstm.learning_rate=0.05",
    "--set=promotion.confidence=0",
)  # fmt: skip
MODEL = [
    f"models/lstm/{name}" for name in ("model.keras", "labels.json", "history.csv", "checkpoints/epoch-0003.keras")
]
METRICS = ["metrics/lstm.json", "metrics/lstm.scores.parquet"]
REGISTRY = ["registry/registry.json", "registry/digests.json", *(
    f"registry/VERSION/{name}" for name in ("model.keras", "labels.json", "history.csv", "metrics.json")
)]  # fmt: skip


def outcome(stage: str, out: Path, *arguments: str) -> tuple[int, str]:
    """Return the exit code of a command, and the line of its error; any other error than that of a user is raised."""
    try:
        return int(run.main.main([stage, "--out", str(out), *SETTINGS, *arguments], standalone_mode=False) or 0), ""
    except PipelineError as error:
        return error.exit_code, str(error)


def answer(model: Path, recording: Path) -> tuple[int, str]:
    """Return the exit code and the output of a prediction; a traceback is raised."""
    result = click.testing.CliRunner().invoke(predict.main, [str(model), str(recording), "--json"])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def write_tones(root: Path) -> Path:
    """Write three speakers per language, whose tones are easy to tell apart."""
    random, time_s = np.random.default_rng(0), np.arange(SAMPLE_RATE_HZ) / SAMPLE_RATE_HZ
    for language, hz in (("de", 300), ("en", 2500)):
        for speaker in range(3):
            folder = root / language / f"{language}_{speaker}"
            folder.mkdir(parents=True)
            samples = 0.3 * np.sin(2 * np.pi * hz * time_s) + 0.01 * random.standard_normal(len(time_s))
            soundfile.write(folder / "0.flac", samples, SAMPLE_RATE_HZ)
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run whose model is the champion."""
    place = tmp_path_factory.mktemp("finished")
    out = place / "out"
    for stage in ("scan", "extract", "train", "evaluate", "promote", "report"):
        assert outcome(stage, out, "--corpus", str(write_tones(place / "corpus") if stage == "scan" else place)) == (
            0,
            "",
        )
    assert json.loads((out / "registry" / "registry.json").read_text())["champion"]
    return place


@pytest.fixture
def out(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished / "out", tmp_path / "out"))


def place_of(out: Path, file: str) -> Path:
    version = json.loads((out / "registry" / "registry.json").read_text())["champion"]
    return out / file.replace("VERSION", version)


def contents(out: Path, files: list[str]) -> list[bytes]:
    return [(out / file).read_bytes() for file in files]


def check_named(found: tuple[int, str], path: Path) -> None:
    code, line = found
    assert code in (1, 2), line
    assert path.name in line or path.parent.name in line
    assert "\n" not in line


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("file", MODEL)
def test_a_damaged_model_is_refused_and_made_again_by_train(finished: Path, out: Path, file: str, kind: str) -> None:
    recording = finished / "corpus" / "de" / "de_0" / "0.flac"
    before, expected = contents(out, MODEL[:2]), answer(out / "models" / "lstm", recording)
    path = place_of(out, file)
    damage(path, kind)
    for stage in ("verify", "evaluate", "report", "promote"):
        check_named(outcome(stage, out), path)
    code, line = found = answer(out / "models" / "lstm", recording)
    assert found == expected or (code == 2 and len(line.splitlines()) == 1)
    if path.name in ("model.keras", "labels.json"):
        assert code == 2
    assert outcome("train", out) == (0, "")
    assert contents(out, MODEL[:2]) == before
    assert all((out / file).exists() for file in MODEL)
    for stage in ("evaluate", "report", "promote"):
        assert outcome(stage, out) == (0, "")
    assert answer(out / "models" / "lstm", recording) == expected


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("file", METRICS)
def test_damaged_metrics_are_refused_and_made_again_by_evaluate(out: Path, file: str, kind: str) -> None:
    before = contents(out, METRICS)
    damage(out / file, kind)
    for stage in ("verify", "report"):
        check_named(outcome(stage, out), out / file)
    assert outcome("evaluate", out) == (0, "")
    assert contents(out, METRICS) == before
    assert outcome("report", out) == (0, "")


def test_an_evaluation_of_a_model_that_served_earlier_is_verified(out: Path) -> None:
    page = (out / "report" / "index.html").read_bytes()
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    assert outcome("evaluate", out, "--as-of", today) == (0, "")
    assert outcome("report", out) == (0, "")
    assert (out / "report" / "index.html").read_bytes() == page
    assert outcome("verify", out) == (0, "")
    damage(out / "metrics" / f"as-of-{today}.json", "flipped")
    code, line = outcome("verify", out)
    assert code == 1
    assert line.endswith(f"1 file damaged or missing (metrics/as-of-{today}.json); run evaluate --as-of {today}")
    assert outcome("evaluate", out, "--as-of", today) == (0, "")
    assert outcome("verify", out) == (0, "")


def group_of(name: str) -> str:
    """Return which files may be damaged together: damage to one must not keep verify from another."""
    if name in ("run.json", "manifest.parquet"):
        return name
    if name.startswith("shards/_") or name == "registry/digests.json":
        return "digests"
    if name.startswith("shards/") or name.endswith("zarr.json") or name == "registry/registry.json":
        return "records"
    return "content"


@pytest.mark.parametrize("seed", range(6))
def test_a_flipped_bit_in_any_file_is_found(out: Path, seed: int, caplog: pytest.LogCaptureFixture) -> None:
    every = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    names = {name for name in every if "/tensorboard/" not in name}
    assert len(names) > 60
    for group in sorted({group_of(name) for name in names}):
        files = {name for name in names if group_of(name) == group}
        chance, there = random.Random(f"{seed} {group}"), out.with_name(group)
        shutil.copytree(out, there)
        for name in sorted(files):
            (there / name).write_bytes(flipped((there / name).read_bytes(), chance))
        code, line = outcome("verify", there)
        assert code in (1, 2), files
        if group.endswith((".json", ".parquet")):
            assert group in line
        else:
            assert f": {len(files)} files damaged" in line, [
                name for name in sorted(files) if f"{there}/{name} " not in caplog.text
            ]


@pytest.mark.parametrize("kind", DAMAGES)
@pytest.mark.parametrize("file", REGISTRY)
def test_a_damaged_registry_never_serves_another_model(finished: Path, out: Path, file: str, kind: str) -> None:
    recording = finished / "corpus" / "de" / "de_0" / "0.flac"
    expected = answer(out / "registry", recording)
    assert expected[0] == 0
    path = place_of(out, file)
    damage(path, kind)
    needed = path.name in ("model.keras", "labels.json")
    code, line = found = answer(out / "registry", recording)
    assert (found == expected and not needed) or (code == 2 and len(line.splitlines()) == 1)
    for stage in ("promote", "status", "report", "rollback"):
        code, line = outcome(stage, out)
        if code:
            check_named((code, line), path if stage != "rollback" or "first champion" not in line else path.parent)
        assert code or not (needed and stage == "promote")
    code, line = outcome("verify", out)
    assert code == (0 if (path.name, kind) == ("digests.json", "deleted") else 1)
    assert not code or f"registry/{path.name}" in line or f"/{path.parent.name}/{path.name}" in line


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_training_in_progress_continues_to_the_same_model(finished: Path, out: Path, kind: str) -> None:
    before = contents(out, MODEL[:2])
    document = json.loads((out / "run.json").read_text())
    del document["stages"]["train/lstm"]
    (out / "run.json").write_text(json.dumps(document))
    for file in MODEL[2:]:
        damage(out / file, kind)
    assert outcome("train", out) == (0, "")
    assert contents(out, MODEL[:2]) == before
    assert (out / MODEL[3]).read_bytes()
