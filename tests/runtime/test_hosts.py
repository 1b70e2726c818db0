"""A running scheduler with workers on other hosts: equal bytes over TCP and TLS, workers that do not fit, and workers,
links, schedulers and drivers that come and go."""

import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import yaml

import pipeline
from tests.support.deadline import DEADLINE_S
from tests.support.gate import Gate
from tests.support.hosts import Certificates, Host, Hosts, Process, Scheduler, wait_until
from tests.support.whole_system import SMALL, finished_shards, run, store_bytes, write_corpus

pytestmark = pytest.mark.slow

NO_PACKAGE = """
import os, sys

sys.path[:] = [path for path in sys.path if not os.path.isdir(os.path.join(path, "pipeline"))]
sys.meta_path[:] = [finder for finder in sys.meta_path if getattr(finder, "__name__", "") != "_EditableFinder"]
"""


@dataclass(frozen=True)
class Network:
    """The hosts of these tests."""

    hosts: Hosts
    head: Host
    """Of the scheduler."""
    desk: Host
    """Of the driver."""
    left: Host
    right: Host


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    with Hosts(tmp_path_factory.mktemp("hosts")) as hosts:
        yield Network(hosts, hosts.host(), hosts.host(), hosts.host(), hosts.host())


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def scanned(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with the manifest alone."""
    out = tmp_path_factory.mktemp("scanned")
    result = run("scan", "--corpus", corpus, "--out", out, "--executor", "serial", *SMALL)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def serial(scanned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with the store that one process wrote."""
    out = tmp_path_factory.mktemp("serial") / "out"
    shutil.copytree(scanned, out)
    result = run("extract", "--out", out, "--executor", "serial", *SMALL)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture
def out(scanned: Path, tmp_path: Path) -> Path:
    """An output folder that is to be extracted into."""
    return Path(shutil.copytree(scanned, tmp_path / "out"))


@pytest.fixture
def gate(out: Path, tmp_path: Path) -> Iterator[Gate]:
    """A gate for workers that stops the extraction when two shards are finished."""
    found = Gate.at(tmp_path / "gate", out / "shards", 2)
    yield found
    found.open()


@pytest.fixture(scope="module")
def no_package(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, str]:
    """The environment of a process that cannot import this project."""
    folder = tmp_path_factory.mktemp("no_package")
    (folder / "sitecustomize.py").write_text(NO_PACKAGE)
    return {"PYTHONPATH": str(folder)}


def other_code(folder: Path) -> dict[str, str]:
    """Return the environment of a process that has this package, but not quite."""
    shutil.copytree(Path(pipeline.__path__[0]), folder / "pipeline")
    with (folder / "pipeline" / "task.py").open("a") as file:
        file.write("\n")
    return {"PYTHONPATH": str(folder)}


def same_store(out: Path, serial: Path) -> bool:
    return store_bytes(out) == store_bytes(serial) and all(
        (out / name).read_bytes() == (serial / name).read_bytes() for name in ("manifest.parquet", "ledger.parquet")
    )


def arguments(stage: str, out: Path, *more: str | Path) -> tuple[str | Path, ...]:
    return (stage, "--out", out, *(more or ("--cluster", "scheduler")), *SMALL)


def wait_for_shards(out: Path, least: int, driver: Process) -> None:
    wait_until(lambda: finished_shards(out) >= least or driver.popen.poll() is not None, f"{least} shards in {out}")
    assert driver.popen.poll() is None, driver.text()


def profile_file(folder: Path, **profile: object) -> Path:
    file = folder / "cluster.yaml"
    file.write_text(yaml.safe_dump({"mine": profile}))
    return file


# One scheduler, a worker on each of two hosts.


@pytest.fixture(scope="module")
def tcp(network: Network) -> Scheduler:
    scheduler = network.hosts.scheduler(network.head)
    for host in (network.left, network.right):
        network.hosts.worker(host, scheduler.address)
    return scheduler


def test_the_store_has_the_bytes_of_the_serial_one(
    network: Network, tcp: Scheduler, corpus: Path, serial: Path, tmp_path: Path
) -> None:
    for stage in ("scan", "extract", "verify"):
        code, log = network.hosts.run(
            network.desk, *arguments(stage, tmp_path), "--corpus", corpus, scheduler=tcp.address
        )
        assert code == 0, log
    assert same_store(tmp_path, serial)


@pytest.mark.parametrize(
    "unfit",
    [
        "no package",
        "no output folder",
        *(
            pytest.param(unfit, marks=pytest.mark.long)
            for unfit in ("other code", "other library", "no corpus", "little memory")
        ),
    ],
)
def test_a_worker_that_does_not_fit_is_refused_by_name(
    network: Network, tcp: Scheduler, corpus: Path, out: Path, tmp_path: Path, unfit: str,
    no_package: Mapping[str, str],
) -> None:  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    environment, wrapper, options = {"PYTHONPATH": str(elsewhere)}, (), ()
    if unfit == "no package":
        environment, expected = dict(no_package), "has no package pipeline; install the project there, or "
    elif unfit == "other code":
        environment = other_code(elsewhere)
        expected = "runs other code of this project (digest "
    elif unfit == "other library":
        (elsewhere / "numpy-0.1.dist-info").mkdir(parents=True)
        (elsewhere / "numpy-0.1.dist-info" / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: numpy\nVersion: 0.1\n"
        )
        expected = "has numpy 0.1, the driver "
    elif unfit == "no output folder":
        wrapper, expected = hidden(out), f"does not see the files in {out}; workers and driver must share it"
    elif unfit == "no corpus":
        wrapper, expected = hidden(corpus), "No such file or directory"
    else:
        options, expected = ("--memory-limit", "300MiB"), "the workers have 300 MiB; make store.chunks_per_shard"
    worker = network.hosts.worker(network.left, tcp.address, *options, wrapper=wrapper, environment=environment)

    code, log = network.hosts.run(network.desk, *arguments("extract", out), scheduler=tcp.address)

    worker.end()
    assert code == (1 if unfit == "little memory" else 2), log
    assert expected in log.splitlines()[-1]
    assert (f"worker {worker.address()} " in log.splitlines()[-1]) == (unfit != "little memory")
    assert "Traceback" not in log
    assert finished_shards(out) == 0


def hidden(folder: Path) -> tuple[str, ...]:
    """Return what runs a command where `folder` is empty; skip where nobody may make it so."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no user make a mount namespace")
    return ("unshare", "-rm", "sh", "-c", f'mount -t tmpfs tmpfs "{folder}" && exec "$@"', "sh")


# A scheduler and two workers that speak TLS alone.


@pytest.fixture(scope="module")
def certificates(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates_for(network, tmp_path_factory.mktemp("tls") / "cluster")


@pytest.fixture(scope="module")
def tls(network: Network, certificates: Certificates) -> Scheduler:
    only = {"DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "true"}
    scheduler = network.hosts.scheduler(network.head, *certificates.options(), "--no-dashboard", environment=only)
    for host in (network.left, network.right):
        network.hosts.worker(host, scheduler.address, *certificates.options(), environment=only)
    return scheduler


def test_over_tls_the_store_has_the_bytes_of_the_serial_one(
    network: Network, tls: Scheduler, certificates: Certificates, corpus: Path, serial: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    assert tls.address.startswith("tls://")
    file = profile_file(tmp_path, address=tls.address, security=certificates.security())
    for stage in ("scan", "extract", "verify"):
        code, log = network.hosts.run(
            network.desk, *arguments(stage, tmp_path, "--cluster", "mine", "--cluster-file", file), "--corpus",
            corpus,
        )  # fmt: skip
        assert code == 0, log
    assert same_store(tmp_path, serial)


@pytest.mark.parametrize(
    "wrong",
    ["another authority", *(pytest.param(wrong, marks=pytest.mark.long) for wrong in ("no certificate", "tcp"))],
)
def test_what_the_scheduler_does_not_trust_is_one_line_within_seconds(
    network: Network, tls: Scheduler, certificates: Certificates, out: Path, tmp_path: Path, wrong: str
) -> None:
    address, security = tls.address, certificates.security()
    if wrong == "another authority":
        security = certificates_for(network, tmp_path / "other").security()
    elif wrong == "no certificate":
        security = {}
    else:
        address, security = address.replace("tls", "tcp"), {}
    file = profile_file(tmp_path, address=address, security=security)

    code, log = network.hosts.run(
        network.desk, *arguments("extract", out, "--cluster", "mine", "--cluster-file", file)
    )

    assert code == 1, log
    assert f"--cluster: no scheduler can be reached at {address}: " in log.splitlines()[-1]
    assert len(log.splitlines()) == 2, log
    assert finished_shards(out) == 0


def certificates_for(network: Network, folder: Path) -> Certificates:
    return Certificates.write(folder, *(host.address for host in (network.head, network.left, network.right)))


def test_workers_without_the_package_are_sent_it_also_those_that_come_later(
    network: Network, serial: Path, out: Path, tmp_path: Path, no_package: Mapping[str, str], gate: Gate
) -> None:
    scheduler = network.hosts.scheduler(network.head, environment=no_package)
    options = ("--preload", str(gate.module))
    first = network.hosts.worker(network.left, scheduler.address, *options, environment=no_package)
    file = profile_file(tmp_path, address=scheduler.address, ship_code=True)
    driver = network.hosts.driver(
        network.desk, *arguments("extract", out, "--cluster", "mine", "--cluster-file", file)
    )
    wait_for_shards(out, 2, driver)
    network.hosts.worker(network.right, scheduler.address, *options, environment=no_package)
    first.end(signal.SIGKILL)
    gate.open()
    assert driver.popen.wait(DEADLINE_S) == 0, driver.text()
    assert "/pipeline" in driver.text()  # the scheduler was sent the page, too
    assert [line for line in driver.text().splitlines() if " INFO " not in line] == []
    assert same_store(out, serial)


def test_a_scheduler_without_the_package_is_told_with_the_remedy(
    network: Network, out: Path, no_package: Mapping[str, str]
) -> None:
    scheduler = network.hosts.scheduler(network.head, environment=no_package)
    network.hosts.worker(network.left, scheduler.address)
    code, log = network.hosts.run(network.desk, *arguments("extract", out), scheduler=scheduler.address)
    assert code == 1, log
    assert f"the scheduler at {scheduler.address} cannot read tasks: No module named 'pipeline'; install the" in log
    assert "Traceback" not in log


# What comes and goes while shards are written; a scheduler for each test.


@pytest.fixture
def scheduler(network: Network) -> Iterator[Scheduler]:
    scheduler = network.hosts.scheduler(network.head)
    yield scheduler
    if scheduler.process.popen.poll() is None:
        scheduler.process.end(signal.SIGKILL)


def start(network: Network, scheduler: Scheduler, out: Path) -> Process:
    return network.hosts.driver(network.desk, *arguments("extract", out), scheduler=scheduler.address)


@pytest.mark.long
def test_all_workers_may_leave_and_others_come(
    network: Network, scheduler: Scheduler, serial: Path, out: Path, gate: Gate
) -> None:
    stopped, killed = (
        network.hosts.worker(host, scheduler.address, "--preload", str(gate.module))
        for host in (network.left, network.right)
    )
    driver = start(network, scheduler, out)
    wait_for_shards(out, 2, driver)
    killed.end(signal.SIGKILL)
    stopped.popen.send_signal(signal.SIGTERM)
    stopped.wait_for("Received signal SIGTERM")
    gate.allow(finished_shards(out) + 1)  # it finishes its task before it ends
    stopped.popen.wait(DEADLINE_S)
    driver.wait_for(f"the scheduler at {scheduler.address} has no worker; the run continues when one connects")
    at_stall = finished_shards(out)
    assert at_stall < finished_shards(serial)

    gate.allow(at_stall + 2)
    nanny = network.hosts.worker(network.left, scheduler.address, "--preload", str(gate.module), "--nanny")
    wait_for_shards(out, at_stall + 2, driver)
    (worker,) = [p for p in psutil.Process(nanny.popen.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    worker.kill()  # its nanny starts another one
    gate.open()

    assert driver.popen.wait(DEADLINE_S) == 0, driver.text()
    assert "Traceback" not in driver.text()
    assert same_store(out, serial)


@pytest.mark.parametrize("lacks", ["code", pytest.param("package", marks=pytest.mark.long)])
def test_a_worker_that_comes_later_and_does_not_fit_writes_nothing(
    network: Network, scheduler: Scheduler, serial: Path, out: Path, tmp_path: Path, gate: Gate,
    no_package: Mapping[str, str], lacks: str,
) -> None:  # fmt: skip
    network.hosts.worker(network.left, scheduler.address, "--preload", str(gate.module))
    driver = start(network, scheduler, out)
    wait_for_shards(out, 2, driver)
    environment = other_code(tmp_path / "elsewhere") if lacks == "code" else no_package
    late = network.hosts.worker(network.right, scheduler.address, environment=environment)
    if lacks == "code":
        assert driver.popen.wait(DEADLINE_S) == 1, driver.text()
        last = driver.text().splitlines()[-1]
        assert f"worker {late.address()} connected with other code of this project or other libraries" in last
    else:
        # Dask ends a worker that cannot deserialise a task
        assert late.popen.wait(DEADLINE_S) is not None
        assert "No module named 'pipeline'" in late.text()
        gate.open()
        assert driver.popen.wait(DEADLINE_S) == 0, driver.text()
        assert same_store(out, serial)
    assert "Traceback" not in driver.text()


@pytest.mark.long
def test_a_scheduler_that_is_killed_ends_the_run_and_another_one_continues_it(
    network: Network, scheduler: Scheduler, serial: Path, out: Path, gate: Gate
) -> None:
    network.hosts.worker(network.left, scheduler.address, "--preload", str(gate.module))
    driver = start(network, scheduler, out)
    wait_for_shards(out, 2, driver)
    scheduler.process.end(signal.SIGKILL)
    assert driver.popen.wait(DEADLINE_S) == 1, driver.text()
    last = driver.text().splitlines()[-1]
    assert f"the scheduler at {scheduler.address} is gone" in last
    assert [line for line in driver.text().splitlines() if " INFO " not in line] == [last]

    another = network.hosts.scheduler(network.head)
    network.hosts.worker(network.right, another.address)
    code, log = network.hosts.run(network.desk, *arguments("extract", out), scheduler=another.address)
    assert code == 0, log
    assert "shards are finished already" in log
    assert same_store(out, serial)


@pytest.mark.long
def test_a_link_that_is_cut_for_seconds_loses_nothing(
    network: Network, scheduler: Scheduler, serial: Path, out: Path, gate: Gate
) -> None:
    if not network.hosts.linked:
        pytest.skip("this machine lets nobody make network namespaces, and loopback has no links to cut")
    for host in (network.left, network.right):
        network.hosts.worker(host, scheduler.address, "--preload", str(gate.module))
    driver = start(network, scheduler, out)
    wait_for_shards(out, 2, driver)
    cut = (network.left, network.desk)
    for host in cut:
        host.cut()
    time.sleep(4)  # the fault itself: a link without packets for that long
    assert driver.popen.poll() is None, driver.text()
    for host in cut:
        host.mend()
    gate.open()
    assert driver.popen.wait(DEADLINE_S) == 0, driver.text()
    assert same_store(out, serial)


def test_a_driver_that_is_killed_leaves_the_cluster_free_and_another_continues(
    network: Network, scheduler: Scheduler, serial: Path, out: Path, gate: Gate
) -> None:
    network.hosts.worker(network.left, scheduler.address, "--preload", str(gate.module))
    driver = start(network, scheduler, out)
    wait_for_shards(out, 2, driver)
    driver.end(signal.SIGKILL)
    scheduler.process.wait_for("Remove client")  # and with it its tasks
    at_kill = finished_shards(out)
    assert at_kill < finished_shards(serial)
    gate.open()
    code, log = network.hosts.run(network.desk, *arguments("extract", out), scheduler=scheduler.address)
    assert code == 0, log
    assert "shards are finished already" in log
    assert same_store(out, serial)
