"""Rewrite the report after each promotion of a model."""

from datetime import timedelta

from airflow.sdk import DAG
from language_id import DAG_ARGUMENTS, MODEL, Stage

with DAG(
    "language_id_report",
    description="Rewrite the report after each promotion",
    doc_md=__doc__,
    schedule=[MODEL],
    **DAG_ARGUMENTS,
):
    Stage(task_id="report", execution_timeout=timedelta(minutes=30))
