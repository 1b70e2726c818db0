"""make passes paths on as they are, and chooses a Python that TensorFlow supports."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SET_BY_MAKE = ("CORPUS", "OUT", "ARGS", "PYTHON", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")
ODD = '/data/it\'s $HOME `x` $(y) "q" a,b #z 100%'


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in SET_BY_MAKE}
    return subprocess.run(
        ["make", "--silent", "--no-print-directory", *arguments],
        cwd=ROOT, env=inherited | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip


def program(path: Path, script: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


@pytest.fixture
def environment(tmp_path: Path) -> str:
    """An installed environment, and Airflow's beside it, whose Python prints its arguments."""
    for place in (tmp_path / "venv", tmp_path / "venv-airflow"):
        program(place / "bin" / "python", r'printf "%s\n" "$@"')
        (place / "installed").touch()
    return f"VENV={tmp_path / 'venv'}"


@pytest.mark.parametrize("target", ["run", "dags"])
def test_paths_are_what_was_typed(environment: str, target: str) -> None:
    done = make(target, environment, f"CORPUS={ODD}", "OUT=out/a$$b 'c", "ARGS=--set 'x y=$z'")
    assert done.returncode == 0, done.stderr
    given = done.stdout.splitlines()
    assert given[given.index("--corpus") + 1] == ODD
    assert given[given.index("--out") + 1] == "out/a$$b 'c"
    assert given[-2:] == ["--set", "x y=$z"]


@pytest.mark.parametrize(
    ("target", "arguments", "corpus", "out"),
    [
        ("run", [], None, "out/demo"),
        ("run", ["CORPUS=/c"], "/c", "out/run"),
        ("run", ["OUT=out/other"], None, "out/other"),
        ("run", ["CORPUS=", "OUT="], "", ""),
        ("dags", [], None, "out/dags"),
        ("dags", ["CORPUS=/c"], "/c", "out/run"),
        ("dags", ["OUT=out/demo 2"], None, "out/demo 2"),
    ],
)
def test_defaults(environment: str, target: str, arguments: list[str], corpus: str | None, out: str) -> None:
    given = make(target, environment, *arguments).stdout.splitlines()
    assert given[given.index("--out") + 1] == out
    assert (given[given.index("--corpus") + 1] if "--corpus" in given else None) == corpus


def test_paths_may_come_from_the_environment(environment: str) -> None:
    assert ODD in make("run", environment, CORPUS=ODD).stdout.splitlines()


@pytest.fixture
def pythons(tmp_path: Path) -> Path:
    """A folder of programs in which python3 is a version that is not supported."""
    folder = tmp_path / "bin"
    program(folder / "python3", '[ "$1" = -c ] && exit 1; exit 9')
    for name in ("sh", "make"):
        (folder / name).symlink_to(f"/usr/bin/{name}")
    return folder


def test_supported_python_is_looked_for(pythons: Path, tmp_path: Path) -> None:
    program(pythons / "python3.12", '[ "$1" = -c ] && exit 0; echo "python3.12 $*"; exit 9')
    done = make("install", f"VENV={tmp_path}/it", PATH=str(pythons))
    assert done.stdout == f"python3.12 -m venv {tmp_path}/it\n"


def test_without_a_supported_python_it_says_which_are(pythons: Path, tmp_path: Path) -> None:
    done = make("install", f"VENV={tmp_path}/it", PATH=str(pythons))
    assert done.returncode == 2
    assert done.stderr.startswith("Python 3.11, 3.12 or 3.13 is needed (TensorFlow supports no other): make PYTHON=")
    assert not (tmp_path / "it").exists()


def test_supported_versions_are_those_of_the_package() -> None:
    bounds = re.search(r"\(3, (\d+)\) <= sys.version_info < \(3, (\d+)\)", (ROOT / "Makefile").read_text())
    assert bounds
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">=3.{bounds[1]},<3.{bounds[2]}"
    named = {name.rpartition("::")[2].strip() for name in project["classifiers"] if ":: Python :: 3." in name}
    assert named == {f"3.{minor}" for minor in range(int(bounds[1]), int(bounds[2]))}


def test_python_may_lie_in_a_folder_with_a_space(tmp_path: Path) -> None:
    python = tmp_path / "my python" / "python"
    program(python, '[ "$1" = -c ] && exit 0; echo "$0"; exit 9')
    assert make("install", f"VENV={tmp_path}/it", f"PYTHON={python}").stdout == f"{python}\n"
