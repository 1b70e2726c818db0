"""The documentation builds without a warning: every link and every anchor leads somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def test_every_page_of_the_repository_is_in_the_site(site: Path) -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    names = {page.relative_to(ROOT).with_suffix(".html").as_posix() for page in pages}
    names = {name.replace("README", "index") for name in names}
    assert names <= {page.relative_to(site).as_posix() for page in site.rglob("*.html")}


def test_the_reference_shows_docstrings(site: Path) -> None:
    page = (site / "docs" / "api" / "model.html").read_text(encoding="utf-8")
    assert 'id="model.loader.sequence_dataset"' in page


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    loads = re.compile(
        r"""<(?:script|img|iframe)[^>]*\ssrc=["']?(?:https?:)?//|<link[^>]*\shref=["']?(?:https?:)?//"""
    )
    assert [page for page in site.rglob("*.html") if loads.search(page.read_text(encoding="utf-8"))] == []
