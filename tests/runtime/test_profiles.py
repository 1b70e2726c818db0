"""Cluster profiles: the file that comes with the project, and what is said of files that cannot be used."""

import signal
import sys
from pathlib import Path
from typing import Any

import pydantic
import pytest

from pipeline.errors import PipelineError, UsageError
from pipeline.runtime.profiles import ADDRESS_VARIABLE, DEFAULT_FILE, UNATTENDED_LIMIT_S, ClusterProfile, load_profile
from pipeline.settings import shown

MINE = """
mine:
  module: types
  class: SimpleNamespace
  kwargs: {memory_limit: 2GiB}
bare: {}
"""


class Counted:
    """A cluster class with a number of workers."""

    def __init__(self, n_workers: int = 7, **kwargs: Any) -> None:
        self.n_workers, self.kwargs = n_workers, kwargs
        self.adapts: dict[str, int] | None = None

    def adapt(self, **bounds: int) -> None:
        self.adapts = bounds


class Listed:
    """A cluster class whose workers are named one by one, as SSHCluster's hosts."""

    def __init__(self, hosts: list[str]) -> None:
        self.hosts = hosts
        self.open = True

    def close(self) -> None:
        self.open = False


class Failing:
    """A cluster class that does not start, for a reason that is wrapped as Dask wraps it."""

    def __init__(self, reason: str) -> None:
        causes: dict[str, Exception] = {
            "refused": OSError("connection\n refused"),
            "silent": RuntimeError(),
            "package": ImportError("No module named 'asyncssh'"),
            "type": TypeError("unexpected keyword argument 'cores'"),
        }
        try:
            raise causes[reason]
        except Exception as error:
            raise RuntimeError("Cluster failed to start") from error


def here(cluster: type, **keys: Any) -> ClusterProfile:
    """A profile of a class of this module."""
    return ClusterProfile.model_validate({"module": __name__, "class": cluster.__name__, **keys})


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


@pytest.mark.parametrize("text", ["bare: {}", "bare:", "bare:\n  kwargs:\n    # n_workers: 3\n  client:\n  security:"])
def test_profile_without_settings_is_a_local_cluster(tmp_path: Path, text: str) -> None:
    profile = load_profile("bare", written(tmp_path, text))
    assert (profile.module, profile.class_, profile.kwargs) == ("dask.distributed", "LocalCluster", {})


def test_class_is_given_its_arguments_those_of_the_driver_and_the_number_of_workers() -> None:
    started = here(Counted, kwargs={"memory_limit": "2GiB"}).start(3, security="of the driver")
    assert (started.n_workers, started.kwargs) == (3, {"memory_limit": "2GiB", "security": "of the driver"})


def test_number_of_workers_is_the_profiles_where_the_user_gives_none() -> None:
    assert here(Counted, kwargs={"n_workers": 5}).start(None).n_workers == 5
    assert here(Counted).start(None).n_workers == 7


def test_number_of_workers_of_a_class_that_has_none_is_refused() -> None:
    profile = here(Listed, kwargs={"hosts": ["a", "b"]})
    assert profile.start(None).hosts == ["a", "b"]
    with pytest.raises(UsageError) as error:
        profile.start(2)
    assert str(error.value) == (
        f"--workers 2: {__name__}.Listed takes no number of workers; its profile lists the workers instead"
    )


def test_adaptive_cluster_is_given_its_bounds_but_not_where_the_user_gives_a_number() -> None:
    profile = here(Counted, adaptive={"minimum": 1, "maximum": 4})
    assert profile.start(None).adapts == {"minimum": 1, "maximum": 4}
    assert profile.start(2).adapts is None
    assert here(Counted).start(None).adapts is None


def test_adaptive_cluster_has_at_least_one_worker_because_work_waits_for_it() -> None:
    assert here(Counted, adaptive={"maximum": 4}).start(None).adapts == {"minimum": 1, "maximum": 4}
    with pytest.raises(pydantic.ValidationError, match=r"adaptive.minimum = 0: .* at least 1"):
        here(Counted, adaptive={"minimum": 0})


def test_arguments_that_adapt_refuses_are_wrong_usage() -> None:
    with pytest.raises(UsageError, match=r"Listed refuses its adaptive: .* 'adapt'$"):
        here(Listed, kwargs={"hosts": []}, adaptive={"maximum": 4}).start(None)


@pytest.mark.parametrize("address", [["::1"], "[::1]:8787", "a:b:c", "127.0.0.1:http", "127.0.0.1:65536", {"a": 1}])
@pytest.mark.parametrize("place", ["", "scheduler_options."])
def test_dashboard_address_that_dask_cannot_read_is_named(place: str, address: object) -> None:
    options = {"dashboard_address": address}
    profile = here(Counted, kwargs={"scheduler_options": options} if place else options)
    with pytest.raises(UsageError) as error:
        profile.start(None)
    assert str(error.value).startswith(
        f"--cluster: kwargs.{place}dashboard_address = {shown(address)}: no address of web"
    )


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_address_of_another_machine_is_explained(host: str) -> None:
    kwargs = {"host": host, "dashboard_address": "127.0.0.1:0", "silence_logs": "CRITICAL"}
    with pytest.raises(UsageError, match=r"did not start: .*; host and dashboard_address in its kwargs must be"):
        ClusterProfile(kwargs=kwargs).start(1)


def test_workers_that_are_threads_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^--cluster: kwargs.processes = false: workers must be processes"):
        ClusterProfile(kwargs={"processes": False}).start(1)


@pytest.mark.parametrize(
    ("keys", "attended", "limit_s"),
    [
        ({"address": "tcp://127.0.0.1:1"}, False, UNATTENDED_LIMIT_S),
        ({"address": "tcp://127.0.0.1:1"}, True, None),
        ({"address": "tcp://127.0.0.1:1", "worker_timeout_s": 5}, True, 5.0),
        ({"address": "tcp://127.0.0.1:1", "worker_timeout_s": None}, False, None),
    ],
)
def test_commands_without_a_terminal_do_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch, keys: dict[str, Any], attended: bool, limit_s: float | None
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: attended, raising=False)
    assert ClusterProfile.model_validate(keys).outlook(None).limit_s == limit_s


def test_address_of_the_profile_is_taken_before_that_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADDRESS_VARIABLE, "tls://there:8786")
    assert ClusterProfile(address="tcp://here:8786").scheduler_address() == "tcp://here:8786"
    assert ClusterProfile(address=None).scheduler_address() == "tls://there:8786"


@pytest.mark.parametrize("value", [None, ""])
def test_address_that_is_nowhere_is_asked_for(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(ADDRESS_VARIABLE, value)
    profile = load_profile("scheduler", None)
    assert profile.runs_already
    with pytest.raises(UsageError) as error:
        profile.scheduler_address()
    assert str(error.value).endswith(f"write one into the profile, or export {ADDRESS_VARIABLE}=tcp://HOST:8786")


@pytest.mark.parametrize("key", ["module: a", "class: B", "kwargs: {}", "adaptive: {minimum: 1}"])
def test_address_and_class_exclude_each_other(tmp_path: Path, key: str) -> None:
    file = written(tmp_path, f"mine: {{address: null, {key}}}")
    assert f"{file}: mine: give either an address, or a class (" in refusal("mine", file)


def test_every_profile_that_comes_with_the_project_can_be_read() -> None:
    for name in ("local", "scheduler", "ssh", "slurm", "kubernetes"):
        profile = load_profile(name, None)
        assert profile.runs_already == (name == "scheduler")


def test_cluster_that_does_not_start_is_told_by_its_first_cause() -> None:
    with pytest.raises(PipelineError) as error:
        here(Failing, kwargs={"reason": "refused"}).start(None)
    assert str(error.value) == f"--cluster: {__name__}.Failing did not start: connection refused"
    assert error.value.exit_code == 1
    with pytest.raises(PipelineError, match=r"did not start: Cluster failed to start$"):
        here(Failing, kwargs={"reason": "silent"}).start(None)


def test_arguments_that_a_class_refuses_are_wrong_usage() -> None:
    with pytest.raises(UsageError) as error:
        here(Failing, kwargs={"reason": "type"}).start(None)
    assert str(error.value) == (
        f"--cluster: {__name__}.Failing refuses its kwargs: unexpected keyword argument 'cores'"
    )


def test_package_that_is_missed_while_starting_is_named_with_the_extra_that_installs_it() -> None:
    with pytest.raises(UsageError) as error:
        here(Failing, kwargs={"reason": "package"}).start(None)
    assert str(error.value) == (
        f"--cluster: {__name__}.Failing needs a package that is not installed (No module named 'asyncssh'): "
        "pip install 'spoken-language-pipeline[ssh]'"
    )


@pytest.mark.parametrize(("module", "extra"), [("dask_jobqueue", "slurm"), ("dask_kubernetes.operator", "kubernetes")])
def test_module_that_is_missing_is_named_with_the_extra_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not installed
    with pytest.raises(UsageError, match=rf"pip install 'spoken-language-pipeline\[{extra}\]'$"):
        ClusterProfile.model_validate({"module": module, "class": "Cluster"}).start(None)


def test_a_package_of_a_cluster_does_not_replace_the_handler_of_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "exits_on_ctrl_c.py").write_text(
        "import signal; signal.signal(2, lambda *_: None)\nclass Cluster: pass"
    )
    monkeypatch.syspath_prepend(tmp_path)
    before = signal.getsignal(signal.SIGINT)
    ClusterProfile.model_validate({"module": "exits_on_ctrl_c", "class": "Cluster"}).load_class()
    assert "exits_on_ctrl_c" in sys.modules
    assert signal.getsignal(signal.SIGINT) is before


def test_profile_is_frozen() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        load_profile("local", None).module = "os"


def test_unknown_profile_is_answered_with_those_there_are(tmp_path: Path) -> None:
    file = written(tmp_path, MINE)
    assert refusal("slurm", file) == f"--cluster slurm: no such profile in {file}; the profiles are mine, bare"


def test_the_working_folder_comes_before_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal("none", None)
    assert message.startswith(f"--cluster none: no such profile in {DEFAULT_FILE}; the profiles are local")
    (tmp_path / "cluster.yaml").write_text("local: {kwargs: {host: 10.0.0.1}}\nmine: {address: null}")
    assert load_profile("local", None).kwargs == {"host": "10.0.0.1"}
    assert load_profile("slurm", None).class_ == "SLURMCluster"
    message = refusal("none", None)
    places = f"cluster.yaml or {DEFAULT_FILE}; the profiles are local, mine, scheduler"
    assert message.startswith(f"--cluster none: no such profile in {places}")


def test_unknown_key_is_answered_with_those_allowed(tmp_path: Path) -> None:
    file = written(tmp_path, "mine: {module: a, klass: b}")
    message = refusal("mine", file)
    assert message.startswith(f"--cluster-file {file}: mine.klass: there is no such key; allowed: ")
    assert message.endswith(
        "allowed: module, class, kwargs, address, adaptive, client, security, worker_timeout_s, ship_code, "
        "price_per_core_hour"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine: 3", "mine: expected keys with values below it"),
        ("mine: {kwargs: 3}", "mine.kwargs: expected keys with values below it"),
        ("mine: {class: [a]}", "mine.class: expected text"),
        ("mine: {address: 3}", "mine.address: expected text"),
        ("mine: {adaptive: 3}", "mine.adaptive: expected keys with values below it"),
        ("mine: {ship_code: often}", "mine.ship_code: expected true or false"),
        ("mine: {price_per_core_hour: dear}", "mine.price_per_core_hour: expected a number"),
        ("mine: {price_per_core_hour: .inf}", "mine.price_per_core_hour: expected a finite number"),
        ("mine: {price_per_core_hour: true}", "mine.price_per_core_hour: expected a number"),
    ],
)
def test_wrong_type_is_named_by_its_key(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    assert refusal("mine", file).startswith(f"--cluster-file {file}: {message}; allowed: ")


@pytest.mark.parametrize(("name", "read"), [("off", "false"), ("yes", "true"), ("1", "1"), ("null", "null")])
def test_name_of_a_profile_that_yaml_reads_as_another_value_is_to_be_quoted(
    tmp_path: Path, name: str, read: str
) -> None:
    message = refusal(name, written(tmp_path, f"{name}: {{}}"))
    assert f": {read} is no name of a profile: quote the name; without quotes YAML reads on, off, yes, no" in message
    assert load_profile(name, written(tmp_path, f'"{name}": {{}}')).kwargs == {}


def test_empty_file_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path, "# nothing yet")
    assert refusal("local", file) == f"--cluster local: no such profile in {file}; there are no profiles in it"
    monkeypatch.chdir(tmp_path)
    file.rename("cluster.yaml")
    assert load_profile("local", None).class_ == "LocalCluster"


@pytest.mark.parametrize("text", ["- local", "local"])
def test_file_without_profiles_is_refused(tmp_path: Path, text: str) -> None:
    assert "expected keys with values below it; allowed: module" in refusal("local", written(tmp_path, text))


@pytest.mark.parametrize("content", ["a: b: c", "a: [", b"\xff\xfe\x00a"])
def test_file_that_is_not_yaml_is_refused(tmp_path: Path, content: str | bytes) -> None:
    file = written(tmp_path, content)
    assert refusal("local", file).startswith(f"--cluster-file {file} is not YAML: ")


def test_a_key_that_is_given_twice_is_refused_with_its_lines(tmp_path: Path) -> None:
    file = written(tmp_path, "mine:\n  kwargs: {}\nmine:\n  ship_code: true\n")
    assert refusal("mine", file) == f"--cluster-file {file} has the key mine twice, in lines 1 and 3; keep one"


def test_missing_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "none.yaml"
    assert refusal("local", file) == f"--cluster-file {file}: No such file or directory"


def test_module_that_nobody_knows_is_named() -> None:
    profile = ClusterProfile.model_validate({"module": "no_such_module", "class": "Cluster"})
    with pytest.raises(UsageError) as error:
        profile.start(1)
    assert str(error.value) == (
        "--cluster: no_such_module.Cluster needs a package that is not installed (No module named 'no_such_module'): "
        "install it, or correct the profile"
    )


def test_class_that_a_module_does_not_have_is_named() -> None:
    profile = ClusterProfile.model_validate({"module": "dask.distributed", "class": "NoSuchCluster"})
    with pytest.raises(UsageError, match=r"the package dask\.distributed has no NoSuchCluster; correct the profile"):
        profile.start(1)
