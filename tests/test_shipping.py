"""The package as data: digests that tell code apart, and a copy that works where the package is not installed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from distributed.protocol import pickle

from pipeline import shipping

DIGEST = "from pipeline import shipping; print(shipping.code_digest(), shipping.identity(), shipping.PACKAGE)"

UNPACK = """
import pickle, sys
from pathlib import Path
from types import SimpleNamespace

sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != "_EditableFinder"]
folder, *more = sys.argv[1:]
for name in more:
    sys.path.insert(0, name)
    import pipeline
plugin = pickle.loads(Path(folder, "plugin").read_bytes())
worker = SimpleNamespace(local_directory=f"{folder}/worker")
plugin.setup(worker)
plugin.setup(worker)
"""


def output(code: str, *arguments: str | Path, cwd: Path) -> list[str]:
    result = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=cwd
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package in another place, which Python prefers when it starts there."""
    return Path(shutil.copytree(shipping.PACKAGE, tmp_path / "elsewhere" / "pipeline"))


def test_equal_code_has_one_digest_wherever_it_lies(copy: Path) -> None:
    digest, identity, package = output(DIGEST, cwd=copy.parent)
    assert package == str(copy)
    assert (digest, identity) == (shipping.code_digest(), shipping.identity())


@pytest.mark.parametrize("change", ["edited", "added", "renamed"])
def test_any_other_source_has_another_digest(copy: Path, change: str) -> None:
    if change == "edited":
        with (copy / "features.py").open("a") as file:
            file.write("\n")
    elif change == "added":
        (copy / "another.py").write_text("")
    else:
        (copy / "demo.py").rename(copy / "demonstration.py")
    digest, identity, _ = output(DIGEST, cwd=copy.parent)
    assert digest != shipping.code_digest()
    assert identity != shipping.identity()


def test_versions_are_those_that_are_installed() -> None:
    assert shipping.versions()["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert set(shipping.versions()) == {"python", "distributed", *shipping.FEATURE_LIBRARIES}


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    """A folder with the plugin as Dask sends it, and one for a worker."""
    (tmp_path / "plugin").write_bytes(pickle.dumps(shipping.OnWorkers(shipping.packed())))
    (tmp_path / "worker").mkdir()
    return tmp_path


def test_a_process_without_the_package_has_it_when_the_plugin_is_set_up(sent: Path) -> None:
    digest, _, package = output(UNPACK + DIGEST, sent, cwd=sent)
    assert digest == shipping.code_digest()
    assert Path(package) == sent / f"pipeline-{digest}" / "pipeline"
    assert list((sent / "worker").iterdir()) == []


def test_another_package_of_the_name_that_is_loaded_is_replaced(sent: Path, copy: Path) -> None:
    (copy / "task.py").write_text("")
    digest, *_ = output(UNPACK + DIGEST, sent, copy.parent, cwd=sent)
    assert digest == shipping.code_digest()


def test_workers_of_a_host_share_the_code_and_what_is_compiled_of_it(sent: Path) -> None:
    output(UNPACK + DIGEST, sent, cwd=sent)
    unpacked = sent / f"pipeline-{shipping.code_digest()}"
    before = {path: path.stat().st_mtime_ns for path in unpacked.rglob("*") if path.suffix != ".pyc"}
    assert {path.name for path in before} >= {path.name for path in shipping.PACKAGE.glob("*.py")}
    assert {path.name for path in before} >= {path.name for path in shipping.PACKAGE.glob("templates/*")}
    output(UNPACK + DIGEST, sent, cwd=sent)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_plugins_have_a_name_that_says_which_code_it_is() -> None:
    parcel = shipping.packed()
    assert shipping.OnWorkers(parcel).name == shipping.OnScheduler(parcel).name == f"pipeline-{shipping.code_digest()}"
