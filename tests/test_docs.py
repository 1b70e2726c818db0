"""The documents say what the code does."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import yaml

from pipeline.run import main
from pipeline.run_config import RunConfig
from pipeline.runtime.profiles import ClusterProfile

ROOT = Path(__file__).parent.parent
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
PACKAGES = [path.parent for top in ("pipeline", "model") for path in (ROOT / top).rglob("__init__.py")]


def docstring(package: Path) -> str:
    """Return the docstring of a package, read without importing it."""
    return ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""


def test_the_settings_page_lists_every_setting_with_its_default() -> None:
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "settings.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    assert yaml.safe_load(block[1]) == RunConfig().model_dump(mode="json")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_is_there(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).is_file()] == []


def test_the_architecture_page_has_the_docstring_of_every_package() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    for package in PACKAGES:
        name = ".".join(package.relative_to(ROOT).parts)
        assert f"### {name}\n\n{docstring(package)}\n" in text, f"copy the docstring of {name} to the page"


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.name)
def test_the_docstring_of_a_package_names_its_modules(package: Path) -> None:
    named = set(re.findall(r"^- `(\w+)`: ", docstring(package), re.MULTILINE))
    assert named == {module.stem for module in package.glob("[a-z]*.py")}


def test_the_architecture_page_names_every_stage_and_layer() -> None:
    text = ARCHITECTURE.read_text(encoding="utf-8")
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = (each["layers"] for each in contracts if each.get("containers") == ["pipeline"])
    assert "\n".join(["```", *layers, "```"]) in text
    assert set(main.commands) <= set(re.findall(r"\w+", text))


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == version
    assert f"## {version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_page_on_clusters_names_every_key_of_a_profile() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    keys = [field.alias or name for name, field in ClusterProfile.model_fields.items()]
    assert [key for key in keys if f"`{key}`" not in page] == []
