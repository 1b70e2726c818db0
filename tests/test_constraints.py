"""The tested versions: constraints.txt pins all that the project and its extras need, and the pins fit each other."""

import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.checkout import ROOT, copy_checkout

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PINS = {
    canonicalize_name(name): version
    for name, _, version in (line.partition("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
}
EXTRAS = sorted(PROJECT["optional-dependencies"].keys() - {"bench"})  # that has constraints of its own in addition


def requirements_of(package: str, extras: frozenset[str]) -> Iterator[tuple[str, Requirement]]:
    """Yield (who needs it, requirement) of the project or of an installed package, with extras."""
    if package == PROJECT["name"]:
        optional = PROJECT["optional-dependencies"]
        found = [*PROJECT["dependencies"], *(line for extra in extras for line in optional[extra])]
    else:
        try:
            found = metadata.requires(package) or []
        except metadata.PackageNotFoundError:  # of an extra that development does not need
            return
        if metadata.version(package) != PINS.get(package):  # what the pinned version needs is not known
            return
    for requirement in map(Requirement, found):
        if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield package, requirement


def test_every_package_is_pinned_to_a_version_that_all_others_accept() -> None:
    todo, done = [(PROJECT["name"], frozenset(EXTRAS))], set()
    wrong = []
    while todo:
        task = todo.pop()
        if task in done:
            continue
        done.add(task)
        for package, requirement in requirements_of(*task):
            name = canonicalize_name(requirement.name)
            if name != PROJECT["name"] and not requirement.specifier.contains(PINS.get(name, "0"), prereleases=True):
                wrong.append(f"{package} needs {requirement}, pinned is {PINS.get(name)}")
            todo.append((name, frozenset(requirement.extras)))
    assert not wrong
    assert {name for name, _ in done} - {PROJECT["name"]} <= PINS.keys()


@pytest.mark.long
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_pip_finds_a_solution_of_all_extras(tmp_path: Path, version: str) -> None:
    everything = f"{copy_checkout(tmp_path / 'source')}[{','.join(EXTRAS)}]"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"),
            *("--python-version", version, "--only-binary=:all:", "--target", str(tmp_path / "target")),
            *("--constraint", str(ROOT / "constraints.txt"), everything),
        ],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
