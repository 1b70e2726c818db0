"""The package as people install it: built, installed into a new environment, and run from any folder."""

import json
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.checkout import ROOT, copy_checkout
from tests.support.whole_system import write_corpus

pytestmark = pytest.mark.slow

SMALL_DEMO = (
    "--set=demo.speakers_per_language=3",
    "--set=demo.utterances_per_speaker=1",
    "--set=demo.utterance_s=1",
    "--set=models.ann.max_epochs=1",
    "--set=models.lstm=null",
)


def build(kind: str, source: Path, target: Path) -> Path:
    """Build an sdist or a wheel of `source` in a process of its own and return the file."""
    code = f"import setuptools.build_meta as b; print(b.build_{kind}({str(target)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=True)
    return target / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_checkout(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def binaries(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, which borrows all other packages of this one."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=False)
    packages = next(place.glob("lib/python*/site-packages"))
    borrowed = [path for path in sys.path if Path(path).name == "site-packages"]
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    python = place / "bin" / "python"
    install = ["-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, *install], check=True)
    return place / "bin"


def succeed(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`, without the variable that would lead Python to the checkout."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done


def test_the_wheel_of_a_checkout_has_the_files_that_are_no_modules(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        profiles = archive.read("pipeline/runtime/cluster.yaml")
    assert profiles == (ROOT / "cluster.yaml").read_bytes()
    assert {"pipeline/py.typed", "model/py.typed", "pipeline/report/templates/report.html.j2"} <= names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {
        "pipeline", "model", "spoken_language_pipeline",
    }  # fmt: skip


def test_a_source_distribution_makes_the_same_wheel(source: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", source, tmp_path)) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    again = build("wheel", unpacked, tmp_path)

    def content(file: Path) -> dict[str, bytes]:
        with zipfile.ZipFile(file) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    assert content(again) == content(wheel)


def test_the_demo_and_predictions_run_from_an_empty_folder(binaries: Path, tmp_path: Path) -> None:
    done = succeed(
        binaries / "python", "-m", "pipeline.run", "demo", "--out", "out", "--workers", "1", *SMALL_DEMO,
        folder=tmp_path,
    )  # fmt: skip
    assert (tmp_path / "out" / "report" / "index.html").is_file(), done.stderr
    recording = next((tmp_path / "out").rglob("*.flac"))
    done = succeed(binaries / "spoken-language-predict", "out/models/ann", recording, "--json", folder=tmp_path)
    (row,) = json.loads(done.stdout)
    assert row["file"] == str(recording)


def test_a_profile_is_taken_from_the_working_folder_and_else_from_the_package(binaries: Path, tmp_path: Path) -> None:
    code = "from pipeline.runtime.profiles import load_profile as f; print(f('local', None).kwargs['memory_limit'])"
    assert succeed(binaries / "python", "-c", code, folder=tmp_path).stdout == "1GiB\n"
    (tmp_path / "cluster.yaml").write_text("local: {kwargs: {memory_limit: 2GiB}}")
    assert succeed(binaries / "python", "-c", code, folder=tmp_path).stdout == "2GiB\n"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["spoken-language-pipeline"], "spoken-language-pipeline"),
        (["spoken-language-predict"], "spoken-language-predict"),
        (["python", "-m", "pipeline.run"], "python -m pipeline.run"),
        (["python", "-m", "model.predict"], "python -m model.predict"),
    ],
)
def test_usage_names_the_command_that_was_run(binaries: Path, tmp_path: Path, command: list[str], name: str) -> None:
    done = succeed(binaries / command[0], *command[1:], "--help", folder=tmp_path)
    assert done.stdout.startswith(f"Usage: {name} [")


def test_the_console_command_needs_no_cluster_file_to_run_serially(binaries: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path / "corpus", recordings=1)
    (tmp_path / "cluster.yaml").write_text("no: {profiles}")
    for stage in ("scan", "extract"):
        succeed(
            binaries / "spoken-language-pipeline", stage, "--corpus", "corpus", "--out", "out", "--executor", "serial",
            folder=tmp_path,
        )  # fmt: skip
    assert (tmp_path / "out" / "ledger.parquet").is_file()
