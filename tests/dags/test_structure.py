"""The DAGs as Airflow parses them."""

import itertools
import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.dag_processing.dagbag import BundleDagBag
from airflow.models import Pool

from tests.dags.local_airflow import ROOT, STAGES, airflow, load_dags

TRAIN = "language_id_train"


@pytest.fixture(scope="module", name="bag")
def bag_fixture() -> BundleDagBag:
    return load_dags()


@pytest.fixture(scope="module", name="train")
def train_fixture(bag: BundleDagBag) -> Any:
    return bag.dags[TRAIN]


@pytest.fixture(scope="module", name="tasks")
def tasks_fixture(bag: BundleDagBag) -> list[Any]:
    return [task for dag in bag.dags.values() for task in dag.tasks]


@pytest.fixture(scope="module", name="committed_pools")
def committed_pools_fixture() -> dict[str, Any]:
    pools: dict[str, Any] = json.loads((ROOT / "dags" / "pools.json").read_text())
    return pools


def test_no_dag_file_has_an_import_error(bag: BundleDagBag) -> None:
    assert bag.import_errors == {}


def test_the_folder_defines_three_dags(bag: BundleDagBag) -> None:
    assert sorted(bag.dags) == ["language_id_report", "language_id_snapshots", TRAIN]


def test_the_dag_processor_parses_exactly_the_files_that_define_a_dag(bag: BundleDagBag) -> None:
    home = Path(os.environ["AIRFLOW_HOME"])
    airflow(home, "dag-processor", "--num-runs", "1")
    parsed = {log.stem for log in home.glob("logs/dag_processor/*/dags-folder/*.log")}  # one log per parsed file
    assert parsed == {Path(dag.fileloc).name for dag in bag.dags.values()}


def test_the_nightly_dag_is_scheduled_at_two(train: Any) -> None:
    assert train.schedule == "0 2 * * *"


def test_nightly_runs_neither_overlap_nor_catch_up(train: Any) -> None:
    assert (train.catchup, train.max_active_runs) == (False, 1)


def test_the_nightly_dag_is_a_chain_with_a_second_edge_from_evaluate_to_report(train: Any) -> None:
    assert [task.task_id for task in train.topological_sort()] == STAGES
    edges = {task.task_id: task.downstream_task_ids for task in train.tasks}
    chain = {stage: {following} for stage, following in itertools.pairwise(STAGES)}
    assert edges == {**chain, "evaluate": {"promote", "report"}, "report": set()}


def test_the_report_also_runs_if_promote_is_skipped(train: Any) -> None:
    assert train.get_task("report").trigger_rule == "none_failed_min_one_success"


def test_a_promotion_publishes_the_asset_that_triggers_the_report_dag(bag: BundleDagBag, train: Any) -> None:
    published = train.get_task("promote").outlets
    assert [asset.name for asset in published] == ["language_id_model"]
    assert bag.dags["language_id_report"].schedule == published


def test_every_task_times_out_before_the_run_does(train: Any, tasks: list[Any]) -> None:
    assert train.dagrun_timeout == timedelta(hours=23)
    for task in tasks:
        assert timedelta() < task.execution_timeout < train.dagrun_timeout


def test_every_task_is_retried_with_growing_delays(tasks: list[Any]) -> None:
    for task in tasks:
        assert task.retries > 0
        assert task.retry_exponential_backoff > 1


def test_all_tasks_share_the_only_committed_pool(tasks: list[Any], committed_pools: dict[str, Any]) -> None:
    assert {task.pool for task in tasks} == set(committed_pools)


def test_the_committed_pool_has_one_slot(committed_pools: dict[str, Any]) -> None:
    assert [pool["slots"] for pool in committed_pools.values()] == [1]


def test_airflow_imports_the_committed_pool() -> None:
    assert {pool.pool: pool.slots for pool in Pool.get_pools()}["language_id"] == 1


def test_no_command_contains_a_template(tasks: list[Any]) -> None:
    """Values that were rendered into shell text would be executed."""
    for task in tasks:
        assert "{{" not in task.bash_command


def test_templates_are_rendered_into_environment_variables(tasks: list[Any]) -> None:
    for task in tasks:
        assert all(name.isupper() for name in task.env)
        assert "{{" in task.env["CORPUS"]


def test_parsing_the_dags_imports_nothing_of_the_pipeline(bag: BundleDagBag) -> None:
    assert bag.dags
    assert not {"pipeline", "model", "dask"} & sys.modules.keys()
