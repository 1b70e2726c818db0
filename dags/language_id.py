"""What the DAGs share: a stage of the pipeline as a task, its settings, and the alert of a failed run."""

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
"""The model that serves; promoting another one publishes it, with the settings of that run."""

POOL: Final = "language_id"
"""One slot, see pools.json: stages of one output folder follow one another, also those of backfills."""

EXIT_SKIP: Final = 99
EXITS_FOR_GOOD: Final = {2: "wrong usage or configuration", 3: "too many recordings failed"}
"""Exit codes that another try would end with as well."""

ALERTS: Final = "language_id_alerts"
"""The connection whose webhook failed runs are posted to, if there is one."""

# setpriv: a task's worker that is killed takes its command with it; flock: what is left of it then, or somebody's
# command in a terminal, is waited for. exec: there is no shell left that would keep a signal to itself.
COMMAND: Final = """\
case "$CLUSTER" in *://*) export DASK_SCHEDULER_ADDRESS="$CLUSTER" CLUSTER=scheduler ;; esac
exec setpriv --pdeathsig TERM flock --no-fork "$LOCK" "$PYTHON" -m pipeline.run {stage} \\
    --out "$OUT" ${{CORPUS:+--corpus "$CORPUS"}} ${{CONFIG:+--config "$CONFIG"}} \\
    --cluster "$CLUSTER" ${{CLUSTER_FILE:+--cluster-file "$CLUSTER_FILE"}} \\
    --max-failed-fraction "$MAX_FAILED_FRACTION"{options}"""

PLACE: Final = {"type": ["null", "string"], "pattern": r"^(/|[a-z][a-z0-9+.-]*://)\S"}
PARAMS: Final = {
    "corpus": Param(None, **PLACE, description="Recordings: an absolute path or a URL."),
    "out": Param(None, **PLACE, description="The output folder: an absolute path or a URL."),
    "config": Param(None, **PLACE, description="Settings in YAML."),
    "cluster": Param(
        None, type=["null", "string"], pattern=r"^([A-Za-z][\w-]*|[a-z]+://\S+)$",
        description="A profile of cluster.yaml, or the address of a Dask scheduler.",
    ),
    "max_failed_fraction": Param(
        None, type=["null", "number"], minimum=0, maximum=1,
        description="The run fails if a larger part of the recordings failed.",
    ),
}  # fmt: skip
"""What a run may be given. Left empty, the Variable language_id_NAME says it."""

DEFAULTS: Final = {"cluster": "local", "max_failed_fraction": "0.01", "python": "python"}

log = logging.getLogger("airflow.task.language_id")


def promoted(events: Any) -> dict[str, str]:
    """Return the settings of the run that promoted the model; empty for a run that no promotion started."""
    found = [event for group in events.values() for event in group]
    return found[-1].extra if found else {}


MACROS: Final = {"promoted": promoted}


def setting(name: str) -> str:
    """Return the template of a setting: the run's parameter, else the promotion's, else the Variable."""
    default = DEFAULTS.get(name, "")
    return (
        f"{{% set given = params.get('{name}') %}}"
        f"{{{{ given if given is not none else promoted(triggering_asset_events).get('{name}') "
        f"or var.value.get('language_id_{name}', '{default}') }}}}"
    )


def lock_file() -> str:
    """Return the file that a stage locks while it runs: one stage at a time on a machine."""
    home = Path(os.environ.get("AIRFLOW_HOME", "~/airflow")).expanduser()
    return os.environ.get("LANGUAGE_ID_LOCK", str(home / "language_id.lock"))


class DashboardLink(BaseOperatorLink):
    """A button on the task while its stage has a page on Dask's dashboard."""

    name = "Dask dashboard"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002
        """Airflow asks when the task has ended, and the page with it; while it runs, `_Command` sets the link."""
        return ""


class _Command(SubprocessHook):
    """Runs a stage; takes the dashboard's address from its output, and tells apart the failures that stay."""

    def __init__(self, ti: Any) -> None:
        super().__init__()
        self._ti = ti

    def run_command(
        self, command: list[str], env: dict[str, str] | None = None, output_encoding: str = "utf-8",
        cwd: str | None = None,
    ) -> SubprocessResult:  # fmt: skip
        """Return the exit code and the last line; raises AirflowFailException where another try would not help."""
        # neither `with` nor `finally`: after a timeout on_kill ends the process, which still writes then
        self.sub_process = Popen(
            command, env=env, cwd=cwd or gettempdir(), stdin=DEVNULL, stdout=PIPE, stderr=STDOUT,
            start_new_session=True, encoding=output_encoding, errors="backslashreplace",
        )  # fmt: skip
        line = ""
        for written in self.sub_process.stdout or ():
            line = written.rstrip()
            self.log.info("%s", line)
            if found := re.search(r"dashboard at (http\S+)", line):
                self._ti.xcom_push(key=DashboardLink().xcom_key, value=found[1])
        exit_code = self.sub_process.wait()
        if self.sub_process.stdout is not None:
            self.sub_process.stdout.close()
        if exit_code in EXITS_FOR_GOOD:
            raise AirflowFailException(f"{EXITS_FOR_GOOD[exit_code]}: {line}")
        return SubprocessResult(exit_code, line)


class Stage(BashOperator):
    """`python -m pipeline.run STAGE` in the pipeline's own environment; the task is named like the stage.

    `options` is constant text behind it, which may name variables of `env`; values come in the environment alone.
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
            skip_on_exit_code=EXIT_SKIP,
            pool=POOL,
            retries=3,
            retry_exponential_backoff=2.0,  # from core.default_task_retry_delay, five minutes
            max_retry_delay=timedelta(hours=1),
            do_xcom_push=False,
            **arguments,
        )

    def execute(self, context: Context) -> None:
        """Run the stage; where it publishes an asset, say with which settings it ran."""
        self.subprocess_hook = _Command(context["ti"])
        super().execute(context)
        for asset in self.outlets:
            given = {name: self.env[name.upper()] for name in PARAMS if self.env[name.upper()]}
            context["outlet_events"][asset].extra = given


def alert(context: Context) -> None:
    """Say in one line that a run failed, and post it to the webhook of the connection language_id_alerts, if any.

    The webhook's URL is the connection's password, which Airflow encrypts and keeps out of logs.
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


COMMON: Final = {
    "catchup": False,
    "max_active_runs": 1,
    "params": PARAMS,
    "user_defined_macros": MACROS,
    "on_failure_callback": alert,
    "tags": ["language_id"],
}
"""Arguments of every DAG."""
