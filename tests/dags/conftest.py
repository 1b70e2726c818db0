"""Set up an Airflow for the tests before anything imports airflow."""

import os
import shutil
import tempfile
from pathlib import Path

from tests.dags.local_airflow import ROOT, airflow, environment

HOME = Path(tempfile.mkdtemp(prefix="airflow-"))
os.environ.update(environment(HOME))


def pytest_sessionstart() -> None:
    airflow(HOME, "db", "migrate")
    airflow(HOME, "pools", "import", str(ROOT / "dags" / "pools.json"))


def pytest_sessionfinish() -> None:
    shutil.rmtree(HOME)
