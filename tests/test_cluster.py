"""Cluster profiles: the file that comes with the project, and what is said of files that cannot be used."""

from pathlib import Path

import pydantic
import pytest

from pipeline.cluster import DEFAULT_FILE, ClusterProfile, load_profile
from pipeline.errors import UsageError

MINE = """
mine:
  module: types
  class: SimpleNamespace
  kwargs: {memory_limit: 2GiB}
bare: {}
"""


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "cluster.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


def refusal(name: str, file: Path | None) -> str:
    with pytest.raises(UsageError) as error:
        load_profile(name, file)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_profile_that_comes_with_the_project_is_a_local_cluster_on_loopback() -> None:
    profile = load_profile("local", None)
    assert (profile.module, profile.class_) == ("dask.distributed", "LocalCluster")
    assert profile.kwargs["threads_per_worker"] == 1
    assert profile.kwargs["memory_limit"] == "1GiB"
    assert profile.kwargs["host"] == "127.0.0.1"
    assert profile.kwargs["dashboard_address"].startswith("127.0.0.1:")


def test_profile_of_another_file(tmp_path: Path) -> None:
    profile = load_profile("mine", written(tmp_path, MINE))
    assert (profile.module, profile.class_, profile.kwargs) == ("types", "SimpleNamespace", {"memory_limit": "2GiB"})


def test_profile_without_settings_is_a_local_cluster(tmp_path: Path) -> None:
    profile = load_profile("bare", written(tmp_path, MINE))
    assert (profile.module, profile.class_, profile.kwargs) == ("dask.distributed", "LocalCluster", {})


def test_class_is_given_its_arguments_and_the_number_of_workers(tmp_path: Path) -> None:
    started = load_profile("mine", written(tmp_path, MINE)).start(3)
    assert vars(started) == {"n_workers": 3, "memory_limit": "2GiB"}


def test_profile_is_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        load_profile("local", None).module = "os"


def test_unknown_profile_is_answered_with_those_there_are(tmp_path: Path) -> None:
    file = written(tmp_path, MINE)
    assert refusal("slurm", file) == f"--cluster slurm: no such profile in {file}; there are: mine, bare"
    assert refusal("none", None).startswith(f"--cluster none: no such profile in {DEFAULT_FILE}; there are: local")


def test_unknown_key_is_answered_with_those_allowed(tmp_path: Path) -> None:
    file = written(tmp_path, "mine: {module: a, klass: b}")
    message = refusal("mine", file)
    assert message.startswith(f"--cluster-file {file}: mine.klass: ")
    assert message.endswith("allowed: module, class, kwargs")


@pytest.mark.parametrize(
    ("text", "key"), [("mine: 3", "mine"), ("mine: {kwargs: 3}", "mine.kwargs"), ("mine: {class: [a]}", "mine.class")]
)
def test_wrong_type_is_named_by_its_key(tmp_path: Path, text: str, key: str) -> None:
    file = written(tmp_path, text)
    assert refusal("mine", file).startswith(f"--cluster-file {file}: {key}: Input should be a valid ")


@pytest.mark.parametrize("text", ["", "- local", "local"])
def test_file_without_profiles_is_refused(tmp_path: Path, text: str) -> None:
    assert "Input should be a valid dictionary" in refusal("local", written(tmp_path, text))


@pytest.mark.parametrize("content", ["a: b: c", "a: [", b"\xff\xfe\x00a"])
def test_file_that_is_not_yaml_is_refused(tmp_path: Path, content: str | bytes) -> None:
    file = written(tmp_path, content)
    assert refusal("local", file).startswith(f"--cluster-file {file} is not YAML: ")


def test_missing_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "none.yaml"
    assert refusal("local", file) == f"--cluster-file {file}: No such file or directory"


@pytest.mark.parametrize(("module", "name"), [("no_such_module", "Cluster"), ("dask.distributed", "NoSuchCluster")])
def test_cluster_that_is_not_installed_is_named(module: str, name: str) -> None:
    profile = ClusterProfile.model_validate({"module": module, "class": name})
    with pytest.raises(UsageError, match=rf"{module}\.{name} is not there: .*; install it"):
        profile.start(1)
