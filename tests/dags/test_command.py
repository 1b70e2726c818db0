"""The command of a task where Variables are missing or wrong: it fails once, and its last line names the Variable."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from airflow.sdk.exceptions import AirflowFailException
from language_id import COMMAND, StageHook

from tests.dags.local_airflow import PYTHON

BASH = str(shutil.which("bash"))
SETTINGS = {"CLUSTER": "local", "CORPUS": "", "CONFIG": "", "CLUSTER_FILE": "", "MAX_FAILED_FRACTION": "0.01"}


def failure(folder: Path, **settings: str) -> str:
    """Run the command of the scan stage, and return the message of its permanent failure."""
    variables = {"OUT": str(folder / "out"), "PYTHON": PYTHON, "LOCK": str(folder / "lock"), **SETTINGS, **settings}
    script = COMMAND.format(stage="scan", options="")
    with pytest.raises(AirflowFailException) as error:
        StageHook(None).run_command([BASH, "-c", script], env=os.environ | variables, cwd=str(folder))
    return str(error.value)


@pytest.mark.parametrize(
    ("python", "reason"),
    [
        ("/nope/python", "No such file or directory"),
        ("", "command not found"),
        (sys.executable, "ModuleNotFoundError: No module named 'pipeline'"),  # that of Airflow
    ],
)
def test_a_python_without_the_pipeline_is_named(tmp_path: Path, python: str, reason: str) -> None:
    message = failure(tmp_path, PYTHON=python)
    assert message.startswith(f"wrong usage or configuration: language_id_python: '{python}' cannot run the pipeline")
    assert f"{reason}); set this Variable to the Python of the environment" in message
    assert not (tmp_path / "lock").exists()


def test_an_output_folder_that_is_not_set_is_asked_for(tmp_path: Path) -> None:
    assert "out is '': set the Variable language_id_out" in failure(tmp_path, OUT="")


@pytest.mark.parametrize("out", ["out/mine", " ", "s3:/bucket/out"])
def test_an_output_folder_that_depends_on_the_working_folder_is_refused(tmp_path: Path, out: str) -> None:
    message = failure(tmp_path, OUT=out)
    assert (
        f"out is '{out}': set the Variable language_id_out, or the parameter out, to the output folder, an" in message
    )


def test_a_lock_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    lock = tmp_path / "none" / "lock"
    assert failure(tmp_path, LOCK=str(lock)).startswith(
        f"the lock file cannot be opened: flock: cannot open lock file {lock}"
    )


@pytest.mark.long
def test_a_corpus_that_is_not_set_is_asked_for(tmp_path: Path) -> None:
    assert "--corpus is missing" in failure(tmp_path)


def test_a_program_that_is_missing_is_named(tmp_path: Path) -> None:
    message = failure(tmp_path, PATH=str(tmp_path))
    assert message.startswith("a program is missing: ")
    assert "setpriv" in message
