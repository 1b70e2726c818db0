"""Whenever another model serves: the report is written anew."""

from datetime import timedelta

from airflow.sdk import DAG
from language_id import MACROS, MODEL, PARAMS, Stage, alert

with DAG(
    "language_id_report",
    description="Report, whenever another model serves",
    doc_md=__doc__,
    schedule=[MODEL],
    catchup=False,
    max_active_runs=1,
    params=PARAMS,
    user_defined_macros=MACROS,
    on_failure_callback=alert,
    tags=["language_id"],
):
    Stage(task_id="report", execution_timeout=timedelta(minutes=30))
