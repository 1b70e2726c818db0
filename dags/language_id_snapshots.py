"""The model that served at the end of a day, evaluated on all test recordings of today: for days past by a backfill.

Paused until somebody wants it: a day before the first promotion has no model.
"""

from datetime import datetime, timedelta

from airflow.sdk import DAG, CronDataIntervalTimetable
from language_id import COMMON, Stage

with DAG(
    "language_id_snapshots",
    description="Evaluate the model that served at the end of a day",
    doc_md=__doc__,
    schedule=CronDataIntervalTimetable("@daily", timezone="UTC"),  # a run has the date of the day that is over
    start_date=datetime(2026, 1, 1),
    is_paused_upon_creation=True,
    **COMMON,
):
    Stage(
        task_id="evaluate",
        options='--as-of "$DAY"',
        env={"DAY": "{{ (dag_run.logical_date or dag_run.run_after) | ds }}"},
        execution_timeout=timedelta(hours=2),
    )
