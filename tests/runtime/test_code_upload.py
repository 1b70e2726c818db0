"""The package as data: digests that identify the code, and an upload to processes that lack the package."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from distributed.protocol import pickle

from pipeline.runtime import code_upload

pytestmark = pytest.mark.slow

DIGEST = "from pipeline.runtime import code_upload as c; print(c.code_digest(), c.identity(), c.PACKAGE)"

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
    """The package in another folder; a Python that starts there imports it."""
    return Path(shutil.copytree(code_upload.PACKAGE, tmp_path / "elsewhere" / "pipeline"))


def test_digest_does_not_depend_on_the_folder(copy: Path) -> None:
    digest, identity, package = output(DIGEST, cwd=copy.parent)
    assert package == str(copy)
    assert (digest, identity) == (code_upload.code_digest(), code_upload.identity())


@pytest.mark.parametrize("change", ["edited", "added", "renamed"])
def test_changed_source_changes_the_digest(copy: Path, change: str) -> None:
    if change == "edited":
        with (copy / "features" / "mfcc.py").open("a") as file:
            file.write("\n")
    elif change == "added":
        (copy / "store" / "another.py").write_text("")
    else:
        (copy / "demo").rename(copy / "demonstration")
    digest, identity, _ = output(DIGEST, cwd=copy.parent)
    assert digest != code_upload.code_digest()
    assert identity != code_upload.identity()


def test_versions_are_the_installed_ones() -> None:
    assert code_upload.versions()["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert set(code_upload.versions()) == {"python", "distributed", *code_upload.FEATURE_LIBRARIES}


@pytest.fixture
def sent(tmp_path: Path) -> Path:
    """A folder with the pickled plugin and the local directory of a worker."""
    (tmp_path / "plugin").write_bytes(pickle.dumps(code_upload.UploadToWorkers(code_upload.pack_code())))
    (tmp_path / "worker").mkdir()
    return tmp_path


def test_plugin_gives_the_package_to_a_process_that_lacks_it(sent: Path) -> None:
    digest, _, package = output(UNPACK + DIGEST, sent, cwd=sent)
    assert digest == code_upload.code_digest()
    assert Path(package) == sent / f"pipeline-{digest}" / "pipeline"
    assert list((sent / "worker").iterdir()) == []


def test_other_code_of_the_package_that_is_loaded_is_replaced(sent: Path, copy: Path) -> None:
    (copy / "extraction" / "task.py").write_text("")
    digest, *_ = output(UNPACK + DIGEST, sent, copy.parent, cwd=sent)
    assert digest == code_upload.code_digest()


def test_workers_of_a_host_share_the_code_and_its_compiled_kernels(sent: Path) -> None:
    output(UNPACK + DIGEST, sent, cwd=sent)
    unpacked = sent / f"pipeline-{code_upload.code_digest()}"
    before = {path: path.stat().st_mtime_ns for path in unpacked.rglob("*") if path.suffix != ".pyc"}
    assert {path.name for path in before} >= {path.name for path in code_upload.PACKAGE.rglob("*.py")}
    assert {path.name for path in before} >= {path.name for path in code_upload.PACKAGE.rglob("templates/*")}
    output(UNPACK + DIGEST, sent, cwd=sent)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_names_of_the_plugins_contain_the_digest() -> None:
    archive = code_upload.pack_code()
    assert (
        code_upload.UploadToWorkers(archive).name
        == code_upload.UploadToScheduler(archive).name
        == f"pipeline-{code_upload.code_digest()}"
    )
