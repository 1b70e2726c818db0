"""The dashboard on real schedulers: pages over HTTP and in a browser, metrics, and workers that die."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from pipeline.monitoring.dashboard import NAME, TOPIC, Dashboard, lost_workers_and_retries, series_csv
from pipeline.monitoring.events import BeginEvent, EndEvent, Event, ShardEvent, to_json
from tests.support.browser import browse, needs_chromium, text_of
from tests.support.deadline import DEADLINE_S

pytestmark = pytest.mark.slow

EVIL = "<script>document.title = 'evil'</script>"


def local_cluster(workers: int, **scheduler: Any) -> LocalCluster:
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        memory_limit="1GiB",
        host="127.0.0.1",
        dashboard_address="127.0.0.1:0",
        scheduler_kwargs=scheduler,
    )


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Dask's errors about killed workers are expected."""
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado", "asyncio")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """A client of two workers and the dashboard, on which nothing has run."""
    with local_cluster(2) as cluster, Client(cluster) as found:
        found.register_plugin(Dashboard())
        yield found


@pytest.fixture
def begun(client: Client) -> Client:
    """The client of a run of ten shards that has just begun."""
    client.wait_for_workers(2)
    report(client, BeginEvent(stage="extract", shards=10, done=2))
    return client


def report(client: Client, *events: Event) -> None:
    client.log_event(TOPIC, to_json(events))


def finish_shard(client: Client, worker: str, **fields: Any) -> None:
    report(client, ShardEvent(audio_s=1800.0, busy_s=2.0, worker=worker, **fields))


def address(client: Client, path: str) -> str:
    return str(client.dashboard_link).removesuffix("/status") + path


def fetch(client: Client, path: str) -> str:
    with urllib.request.urlopen(address(client, path), timeout=DEADLINE_S) as answer:
        return str(answer.read().decode())


def state(client: Client) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(fetch(client, "/pipeline/state.json"))
    return found


def metrics(client: Client) -> dict[tuple[str, ...], float]:
    """Return the values of the pipeline's metrics by name and labels; each may come once."""
    families = text_string_to_metric_families(fetch(client, "/metrics"))
    samples = [sample for family in families if family.name.startswith("pipeline_") for sample in family.samples]
    values = {(sample.name, *sample.labels.values()): sample.value for sample in samples}
    assert len(values) == len(samples)
    return values


def wait_until(true: Callable[[], bool]) -> None:
    """Wait; the test's own time limit ends what never comes."""
    while not true():
        time.sleep(0.02)


def waits_for(path: Path, number: int) -> int:
    wait_until(path.exists)
    return number


def busy_workers(client: Client) -> set[str]:
    return {worker for worker, keys in client.processing().items() if keys}


def test_page_before_the_first_event() -> None:
    with local_cluster(0) as cluster, Client(cluster) as client:
        client.register_plugin(Dashboard())
        seen = state(client)
        assert (seen["status"], seen["stage"], seen["workers"]) == ("idle", None, [])
        assert "No extraction is running yet" in fetch(client, "/pipeline")
        assert metrics(client)["pipeline_shards", "done"] == 0


def test_events_become_the_state(begun: Client) -> None:
    first, second = sorted(begun.scheduler_info()["workers"])
    finish_shard(begun, first, failures={"ends after 3.2 s": 1}, bytes_read=100, bytes_written=10)
    finish_shard(begun, first, failures={"ends after 4.5 s": 1}, slowest=(("a", 1.0, 5.0),))
    finish_shard(begun, second)
    seen = state(begun)
    assert (seen["stage"], seen["status"], seen["audio_s"]) == ("extract", "running", 5400.0)
    assert seen["shards"] == {"total": 10, "done": 5, "left": 5}
    assert (seen["failures"], seen["slowest"]) == ([["ends after … s", 2]], [["a", 1.0, 5.0]])
    assert (seen["running"], seen["lost_workers"], seen["retries"]) == (0, 0, 0)
    workers = {worker["address"]: worker for worker in seen["workers"]}
    assert {name: worker["shards"] for name, worker in workers.items()} == {first: 2, second: 1}
    assert all(worker["memory_bytes"] < worker["memory_limit_bytes"] == 2**30 for worker in workers.values())


def test_second_registration_changes_nothing(begun: Client) -> None:
    finish_shard(begun, "tcp://10.0.0.1:1")
    begun.register_plugin(Dashboard())
    finish_shard(begun, "tcp://10.0.0.1:1")
    assert state(begun)["shards"]["done"] == 4
    assert metrics(begun)["pipeline_shards", "done"] == 4
    assert begun.run_on_scheduler(routes).count("/pipeline$") == 1


def test_metrics_are_those_of_the_events(begun: Client) -> None:
    first, second = sorted(begun.scheduler_info()["workers"])
    finish_shard(begun, first, failures={'said "no" 3 times\n': 4}, bytes_read=100, bytes_written=10)
    finish_shard(begun, second)
    found = metrics(begun)
    assert found.pop(("pipeline_audio_hours_per_hour",)) > 0
    assert found == {
        ("pipeline_shards", "done"): 4,
        ("pipeline_shards", "running"): 0,
        ("pipeline_shards", "left"): 6,
        ("pipeline_audio_seconds_total",): 3600,
        ("pipeline_recordings_failed_total", 'said "no" … times\n'): 4,
        ("pipeline_read_bytes_total",): 100,
        ("pipeline_written_bytes_total",): 10,
        ("pipeline_workers",): 2,
        ("pipeline_worker_busy_seconds_total", first): 2,
        ("pipeline_worker_busy_seconds_total", second): 2,
        ("pipeline_workers_lost_total",): 0,
        ("pipeline_task_retries_total",): 0,
    }


def test_series_has_workers_and_their_memory(begun: Client) -> None:
    finish_shard(begun, "tcp://10.0.0.1:1")
    report(begun, EndEvent())
    heading, *_, last = begun.run_on_scheduler(series_csv).decode().splitlines()
    row = dict(zip(heading.split(","), last.split(","), strict=True))
    assert (row["shards_done"], row["audio_h"], row["workers"]) == ("3", "0.5", "2")
    assert int(row["memory_bytes"]) > 2 * 10**7
    assert state(begun)["status"] == "stopped"


def test_killed_worker_is_lost_and_its_task_runs_again(begun: Client, tmp_path: Path) -> None:
    futures = begun.map(waits_for, [tmp_path / "go"] * 2, range(2), pure=False)
    wait_until(lambda: len(busy_workers(begun)) == 2)
    assert state(begun)["running"] == 2
    killed, pid = next(iter(begun.run(os.getpid).items()))
    finish_shard(begun, killed)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: begun.run_on_scheduler(lost_workers_and_retries) != (0, 0))
    assert begun.run_on_scheduler(lost_workers_and_retries) == (1, 1)
    (tmp_path / "go").touch()
    assert begun.gather(futures) == [0, 1]
    begun.wait_for_workers(2)  # the nanny's
    seen, found = state(begun), metrics(begun)
    assert (seen["lost_workers"], seen["retries"]) == (1, 1)
    assert (found["pipeline_workers_lost_total",], found["pipeline_task_retries_total",]) == (1, 1)
    # what it has done is shown, without the memory that it does not have
    [gone] = [worker for worker in seen["workers"] if worker["address"] == killed]
    assert (gone["shards"], "memory_bytes" in gone) == (1, False)
    assert len(seen["workers"]) == 3
    report(begun, BeginEvent(stage="extract", shards=10, done=2))
    assert begun.run_on_scheduler(lost_workers_and_retries) == (0, 0)


def test_cancelled_task_does_not_run_again(begun: Client, tmp_path: Path) -> None:
    future = begun.submit(waits_for, tmp_path / "go", 1, pure=False)
    wait_until(lambda: bool(busy_workers(begun)))
    future.cancel()
    wait_until(lambda: not busy_workers(begun))
    (tmp_path / "go").touch()
    assert begun.run_on_scheduler(lost_workers_and_retries) == (0, 0)


def test_workers_that_leave_in_order_are_not_lost_unless_they_had_tasks(tmp_path: Path) -> None:
    with local_cluster(3) as cluster, Client(cluster) as client:
        client.register_plugin(Dashboard())
        cluster.scale(2)
        wait_until(lambda: len(client.scheduler_info()["workers"]) == 2)
        assert client.run_on_scheduler(lost_workers_and_retries) == (0, 0)
        future = client.submit(waits_for, tmp_path / "go", 1, pure=False)
        wait_until(lambda: len(busy_workers(client)) == 1)
        [busy] = busy_workers(client)
        client.run(closes, workers=[busy], wait=False)
        wait_until(lambda: client.run_on_scheduler(lost_workers_and_retries) != (0, 0))
        assert client.run_on_scheduler(lost_workers_and_retries) == (1, 1)
        (tmp_path / "go").touch()
        assert future.result() == 1


def routes(dask_scheduler: Any) -> list[str]:
    """Return the patterns of the pages that were added to the server after it had started."""
    added = [rule.target.rules for rule in dask_scheduler.http_application.default_router.rules]
    return [rule.matcher.regex.pattern for rules in added for rule in rules if hasattr(rule.matcher, "regex")]


async def closes(dask_worker: Any) -> None:
    """Close as for a signal of the batch system: announced, whatever runs."""
    await dask_worker.close(timeout=0, reason="test", executor_wait=False)


def test_pages_are_where_dasks_own_are(client: Client) -> None:
    with local_cluster(0, http_prefix="/some/dask") as cluster, Client(cluster) as prefixed:
        prefixed.register_plugin(Dashboard())
        root = re.sub(r"^(https?://[^/]+)/.*$", r"\1", str(prefixed.dashboard_link))
        with urllib.request.urlopen(f"{root}/some/dask/pipeline/state.json", timeout=DEADLINE_S) as answer:
            assert json.load(answer)["status"] == "idle"
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{root}/pipeline", timeout=DEADLINE_S)
        assert error.value.code == 404
        error.value.close()


def test_metrics_end_with_the_scheduler() -> None:
    def names() -> list[str]:
        return [family.name for family in REGISTRY.collect()]

    before = names().count("pipeline_shards")
    with local_cluster(0) as cluster, Client(cluster) as client:
        client.register_plugin(Dashboard())
        assert names().count("pipeline_shards") == before + 1
    assert names().count("pipeline_shards") == before


def test_scheduler_preloads_it(tmp_path: Path) -> None:
    file, log = tmp_path / "scheduler.json", tmp_path / "log"
    command = [
        sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0",
        "--dashboard-address", "127.0.0.1:0", "--scheduler-file", str(file),
        "--preload", "pipeline.monitoring.dashboard",
    ]  # fmt: skip
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as scheduler:
        try:
            wait_until(lambda: file.exists() or scheduler.poll() is not None)
            assert scheduler.poll() is None, log.read_text()
            with Client(scheduler_file=str(file)) as client:
                report(client, BeginEvent(stage="extract", shards=7, done=0))
                client.register_plugin(Dashboard())
                assert state(client)["shards"]["total"] == 7
                assert metrics(client)["pipeline_shards", "left"] == 7
                assert "pipeline_shards" in fetch(client, "/metrics")
        finally:
            scheduler.send_signal(signal.SIGINT)


def test_plugin_has_its_name() -> None:
    assert (Dashboard.name, Dashboard.idempotent) == (NAME, True)


@needs_chromium
def test_browser_shows_the_numbers_while_tasks_run(begun: Client, tmp_path: Path) -> None:
    first, second = sorted(begun.scheduler_info()["workers"])
    futures = begun.map(waits_for, [tmp_path / "go"] * 2, range(2), pure=False)
    wait_until(lambda: len(busy_workers(begun)) == 2)
    finish_shard(begun, first, failures={f"{EVIL} after 3 s": 1234}, slowest=((EVIL, 65.0, 90.0),))
    finish_shard(begun, second, bytes_read=3 * 2**30)
    dom = browse(address(begun, "/pipeline"), tmp_path, "--dump-dom")
    assert "<title>40.0 % extract</title>" in dom
    assert text_of(dom, "status") == "running"
    legend = re.search(r'<div id="legend".*?</div>', dom, re.DOTALL)
    assert legend is not None
    assert "4 of 10 shards done (40.0 %, 2 in earlier runs)" in legend[0]
    assert "2 running" in legend[0]
    assert "4 left" in legend[0]
    tiles = text_of(dom, "tiles")
    for tile in ("audio done 1 h", "recordings failed 1,234", "workers lost 0", "read 3.0 GiB"):
        assert tile in tiles
    assert "&lt;script&gt;document.title = 'evil'&lt;/script&gt; after … s 1,234" in text_of(dom, "reasons")
    assert "65 s 1.5 min" in text_of(dom, "slowest")
    workers = text_of(dom, "workers")
    for worker in (first, second):
        assert f"{worker.removeprefix('tcp://')} 1 0 " in workers
    assert workers.count("of 1.0 GiB") == 2
    assert dom.count('class="line"') == 3
    (tmp_path / "go").touch()
    assert begun.gather(futures) == [0, 1]


@needs_chromium
def test_browser_follows_the_run_to_its_end(begun: Client, tmp_path: Path) -> None:
    """The page that was loaded while the run began is asked for its state after the end."""
    page = fetch(begun, "/pipeline")
    assert '"status": "running"' in page
    for _ in range(8):
        finish_shard(begun, "tcp://10.0.0.1:1")
    report(begun, EndEvent())
    dom = browse(address(begun, "/pipeline"), tmp_path, "--dump-dom")
    assert "<title>100 % extract</title>" in dom
    assert text_of(dom, "status") == "finished"
    picture = tmp_path / "page.png"
    browse(address(begun, "/pipeline"), tmp_path, f"--screenshot={picture}")
    assert picture.read_bytes().startswith(b"\x89PNG")
