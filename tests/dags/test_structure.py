"""The DAG files as Airflow reads them."""

import itertools
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.models import Pool

from tests.dags.local_airflow import ROOT

STAGES = ["scan", "extract", "verify", "train", "evaluate", "promote", "report"]


@pytest.fixture(scope="module", name="bag")
def bag_fixture() -> BundleDagBag:
    return BundleDagBag(dag_folder=ROOT / "dags", bundle_path=ROOT / "dags", bundle_name="dags-folder")


@pytest.fixture(name="tasks")
def tasks_fixture(bag: BundleDagBag) -> Iterator[Any]:
    return [task for dag in bag.dags.values() for task in dag.tasks]


def test_every_file_is_read_without_an_error(bag: BundleDagBag) -> None:
    assert bag.import_errors == {}
    assert sorted(bag.dags) == ["language_id_report", "language_id_snapshots", "language_id_train"]


def test_the_nightly_run_is_a_chain_and_its_report_also_follows_a_champion_that_stays(bag: BundleDagBag) -> None:
    dag = bag.dags["language_id_train"]
    assert dag.schedule == "0 2 * * *"
    assert (dag.catchup, dag.max_active_runs) == (False, 1)
    assert [task.task_id for task in dag.topological_sort()] == STAGES
    edges = {task.task_id: task.downstream_task_ids for task in dag.tasks}
    chain = {stage: {following} for stage, following in itertools.pairwise(STAGES)}
    assert edges == {**chain, "evaluate": {"promote", "report"}, "report": set()}
    assert dag.get_task("report").trigger_rule == "none_failed_min_one_success"
    assert [asset.name for asset in dag.get_task("promote").outlets] == ["language_id_model"]


def test_the_report_follows_the_asset_that_a_promotion_publishes(bag: BundleDagBag) -> None:
    promoted = bag.dags["language_id_train"].get_task("promote").outlets
    assert bag.dags["language_id_report"].schedule == promoted


def test_every_task_has_a_timeout_retries_and_a_pool_that_is_committed(tasks: list[Any]) -> None:
    pools = json.loads((ROOT / "dags" / "pools.json").read_text())
    assert {task.pool for task in tasks} == set(pools)
    assert [pool["slots"] for pool in pools.values()] == [1]
    for task in tasks:
        assert timedelta() < task.execution_timeout < timedelta(hours=23)
        assert task.retries > 0
        assert task.retry_exponential_backoff > 1


def test_the_committed_pools_are_imported() -> None:
    assert {pool.pool: pool.slots for pool in Pool.get_pools()}["language_id"] == 1


def test_no_value_is_interpolated_into_shell_text(tasks: list[Any]) -> None:
    for task in tasks:
        assert "{{" not in task.bash_command
        assert all(name.isupper() for name in task.env)


def test_dags_import_neither_package(bag: BundleDagBag) -> None:
    with pytest.raises(ModuleNotFoundError):
        __import__("dask")  # so this environment could not even run them
    assert bag.dags
