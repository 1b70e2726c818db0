"""Whenever another model serves: the report is written anew."""

from datetime import timedelta

from airflow.sdk import DAG
from language_id import COMMON, MODEL, Stage

with DAG(
    "language_id_report",
    description="Report, whenever another model serves",
    doc_md=__doc__,
    schedule=[MODEL],
    **COMMON,
):
    Stage(task_id="report", execution_timeout=timedelta(minutes=30))
