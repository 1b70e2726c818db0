"""Shared by the DAG files: the operator that runs a pipeline stage, its settings, and the alert for a failed run."""

import logging
import os
import re
from datetime import timedelta
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT, Popen
from tempfile import gettempdir
from typing import Any, Final

import httpx
from airflow.providers.standard.hooks.subprocess import SubprocessHook, SubprocessResult
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import Asset, BaseHook, BaseOperatorLink, Context, Param
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException

MODEL: Final = Asset("language_id_model")
"""The champion model. Each promotion publishes an asset event with the settings of the promoting run."""

POOL: Final = "language_id"
"""A pool with one slot (pools.json): only one stage runs at a time, including stages of backfills."""

SKIP_EXIT_CODE: Final = 99
PERMANENT_FAILURES: Final = {
    2: "wrong usage or configuration",
    3: "too many recordings failed",
    66: "the lock file cannot be opened",
    126: "a program cannot be executed",
    127: "a program is missing",
}
"""Exit codes that a retry cannot change, and their meaning; 66 is flock's, 126 and 127 are the shell's."""

ALERTS: Final = "language_id_alerts"
"""An optional Airflow connection; its password is the URL of the webhook that receives failed runs."""

# The first commands check what Variables are often set wrongly. An error in them would otherwise look like a failure
# that a retry may mend: Python exits with 1 if it has no pipeline.
# setpriv terminates the command when its task's process is killed. flock waits for any earlier command that still
# holds the lock, for example one started by cron. exec replaces the shell, which would not forward signals.
COMMAND: Final = """\
case "$OUT" in
    /* | "~"* | *://*) ;;
    *)
        echo "out is '$OUT': set the Variable language_id_out, or the parameter out, to the output folder, an" \\
            "absolute path or a URL"
        exit 2
        ;;
esac
if ! error=$("$PYTHON" -c 'import pipeline.options' 2>&1); then
    echo "language_id_python: '$PYTHON' cannot run the pipeline (${{error##*$'\\n'}}); set this Variable to the" \\
        "Python of the environment in which the pipeline is installed"
    exit 2
fi
case "$CLUSTER" in *://*) export DASK_SCHEDULER_ADDRESS="$CLUSTER" CLUSTER=scheduler ;; esac
exec setpriv --pdeathsig TERM flock --no-fork "$LOCK" "$PYTHON" -m pipeline.run {stage} \\
    --out "$OUT" ${{CORPUS:+--corpus "$CORPUS"}} ${{CONFIG:+--config "$CONFIG"}} \\
    --cluster "$CLUSTER" ${{CLUSTER_FILE:+--cluster-file "$CLUSTER_FILE"}} \\
    --max-failed-fraction "$MAX_FAILED_FRACTION"{options}"""

PATH_OR_URL: Final = {"type": ["null", "string"], "pattern": r"^(/|[a-z][a-z0-9+.-]*://)\S"}
PARAMS: Final = {
    "corpus": Param(None, **PATH_OR_URL, description="The folder of the recordings: an absolute path or a URL."),
    "out": Param(None, **PATH_OR_URL, description="The output folder: an absolute path or a URL."),
    "config": Param(None, **PATH_OR_URL, description="The YAML file of settings: an absolute path or a URL."),
    "cluster": Param(
        None, type=["null", "string"], pattern=r"^([A-Za-z][\w-]*|[a-z]+://\S+)$",
        description="A profile of cluster.yaml, or the address of a Dask scheduler.",
    ),
    "max_failed_fraction": Param(
        None, type=["null", "number"], minimum=0, maximum=1,
        description="The run fails if more than this fraction of the recordings cannot be processed.",
    ),
}  # fmt: skip
"""Parameters of a run. An empty parameter takes its value from the Variable language_id_NAME."""

DEFAULTS: Final = {"cluster": "local", "max_failed_fraction": "0.01", "python": "python"}

log = logging.getLogger("airflow.task.language_id")


def promoted_settings(events: Any) -> dict[str, str]:
    """Return the settings of the promotion that triggered this run, or an empty dict if none did."""
    found = [event for group in events.values() for event in group]
    return found[-1].extra if found else {}


MACROS: Final = {"promoted_settings": promoted_settings}


def setting(name: str) -> str:
    """Return a Jinja template for a setting: the run's parameter, or the promotion's, or the Variable."""
    default = DEFAULTS.get(name, "")
    return (
        f"{{% set given = params.get('{name}') %}}"
        f"{{{{ given if given is not none else promoted_settings(triggering_asset_events).get('{name}') "
        f"or var.value.get('language_id_{name}', '{default}') }}}}"
    )


def lock_file() -> str:
    """Return the path of the file that every stage locks, which allows one stage at a time on a machine."""
    home = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()
    return os.environ.get("LANGUAGE_ID_LOCK", str(home / "language_id.lock"))


class DashboardLink(BaseOperatorLink):
    """A button on the task that opens the Dask dashboard while its stage runs."""

    name = "Dask dashboard"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002
        """Return no link: Airflow calls this after the task has ended. `StageHook` sets the link of a running task."""
        return ""


class StageHook(SubprocessHook):
    """Run the command of a stage, publish the dashboard URL from its output, and detect permanent failures."""

    def __init__(self, ti: Any) -> None:
        super().__init__()
        self._ti = ti

    def run_command(
        self, command: list[str], env: dict[str, str] | None = None, output_encoding: str = "utf-8",
        cwd: str | None = None,
    ) -> SubprocessResult:  # fmt: skip
        """Run a command and copy its output to the task's log.

        Args:
            command: the program and its arguments.
            env: all environment variables of the command; None inherits those of this process.
            output_encoding: the encoding of the output; undecodable bytes are escaped.
            cwd: the working directory; None is the system's folder for temporary files.

        Returns:
            The exit code and the last line of the output.

        Raises:
            AirflowFailException: the exit code is one of `PERMANENT_FAILURES`, so a retry would fail as well.
        """
        # Neither `with` nor `finally`: after a timeout, `on_kill` ends the process, which may still be writing.
        self.sub_process = Popen(
            command, env=env, cwd=cwd or gettempdir(), stdin=DEVNULL, stdout=PIPE, stderr=STDOUT,
            start_new_session=True, encoding=output_encoding, errors="backslashreplace",
        )  # fmt: skip
        line = ""
        for output_line in self.sub_process.stdout or ():
            line = output_line.rstrip()
            self.log.info("%s", line)
            if found := re.search(r"dashboard at (http\S+)", line):
                self._ti.xcom_push(key=DashboardLink().xcom_key, value=found[1])
        exit_code = self.sub_process.wait()
        if self.sub_process.stdout is not None:
            self.sub_process.stdout.close()
        if exit_code in PERMANENT_FAILURES:
            raise AirflowFailException(f"{PERMANENT_FAILURES[exit_code]}: {line}")
        return SubprocessResult(exit_code, line)


class Stage(BashOperator):
    """A task that runs `python -m pipeline.run STAGE` in the pipeline's environment.

    Args:
        task_id: the name of the stage.
        options: further command-line options as constant shell text, which may refer to variables in `env`.
        env: additional environment variables (templates). Values reach the command only through the environment.
        arguments: further arguments of `BashOperator`.
    """

    operator_extra_links = (DashboardLink(),)

    def __init__(
        self, *, task_id: str, options: str = "", env: dict[str, str] | None = None, **arguments: Any
    ) -> None:
        names = ("corpus", "out", "config", "cluster", "cluster_file", "max_failed_fraction", "python")
        super().__init__(
            task_id=task_id,
            bash_command=COMMAND.format(stage=task_id, options=options and f" {options}"),
            env={"LOCK": lock_file(), **{name.upper(): setting(name) for name in names}, **(env or {})},
            append_env=True,
            skip_on_exit_code=SKIP_EXIT_CODE,
            pool=POOL,
            retries=3,
            retry_exponential_backoff=2.0,  # starting at core.default_task_retry_delay, by default 5 minutes
            max_retry_delay=timedelta(hours=1),
            do_xcom_push=False,
            **arguments,
        )

    def execute(self, context: Context) -> None:
        """Run the stage and attach its settings to the assets that it publishes."""
        self.subprocess_hook = StageHook(context["ti"])
        super().execute(context)
        for asset in self.outlets:
            settings = {name: self.env[name.upper()] for name in PARAMS if self.env[name.upper()]}
            context["outlet_events"][asset].extra = settings


def alert(context: Context) -> None:
    """Log that a run failed, and post the message to the webhook of the connection `language_id_alerts` if it exists.

    The webhook's URL is stored as the connection's password because Airflow encrypts passwords and masks them in logs.
    """
    task = context.get("ti")
    where = f"in {task.task_id}" if task else f"({context['reason']})"
    text = f"{context['dag'].dag_id}: the run {context['run_id']} failed {where}"
    log.error("%s", text)
    try:
        webhook = BaseHook.get_connection(ALERTS).password
    except AirflowNotFoundException:
        return
    httpx.post(webhook, json={"text": text}, timeout=30).raise_for_status()


DAG_ARGUMENTS: Final = {
    "catchup": False,
    "max_active_runs": 1,
    "params": PARAMS,
    "user_defined_macros": MACROS,
    "on_failure_callback": alert,
    "tags": ["language_id"],
}
"""Arguments shared by all DAGs."""
