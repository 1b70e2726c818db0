"""The documents say what the code does."""

import re
from pathlib import Path

import yaml

from pipeline.run_config import RunConfig
from pipeline.runtime.profiles import ClusterProfile
from pipeline.stages import STAGES

ROOT = Path(__file__).parent.parent


def test_the_settings_page_lists_every_setting_with_its_default() -> None:
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "docs" / "settings.md").read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    assert yaml.safe_load(block[1]) == RunConfig().model_dump(mode="json")


def test_every_file_that_the_readme_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_the_architecture_page_names_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = [p.stem for package in ("pipeline", "model") for p in (ROOT / package).glob("[a-z]*.py")]
    assert set(STAGES) <= set(re.findall(r"\w+", page))
    assert [name for name in modules if not re.search(rf"\b{name}\b", page)] == []


def test_the_page_on_clusters_names_every_key_of_a_profile() -> None:
    page = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    keys = [field.alias or name for name, field in ClusterProfile.model_fields.items()]
    assert [key for key in keys if f"`{key}`" not in page] == []
