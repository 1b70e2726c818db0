"""Evaluate the champion of each day's end on the current test recordings; a backfill covers earlier days.

The DAG is paused at first, because there is no champion before the first promotion.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG, CronDataIntervalTimetable
from language_id import DAG_ARGUMENTS, Stage

with DAG(
    "language_id_snapshots",
    description="Evaluate the champion of a day's end",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),  # a run's logical date is the day that has ended
    start_date=datetime(2026, 1, 1),
    is_paused_upon_creation=True,
    **DAG_ARGUMENTS,
):
    Stage(
        task_id="evaluate",
        options='--as-of "$DAY"',
        env={"DAY": "{{ (dag_run.logical_date or dag_run.run_after) | ds }}"},
        execution_timeout=timedelta(hours=2),
    )
