"""Every night at 02:00: what is new in the corpus becomes a model, which serves if it is better."""

import os
from datetime import datetime, timedelta

from airflow.sdk import DAG
from language_id import COMMON, EXIT_SKIP, MODEL, Stage

with DAG(
    "language_id_train",
    description="Scan, extract, verify, train, evaluate, promote, report",
    doc_md=__doc__,
    schedule=os.environ.get("LANGUAGE_ID_SCHEDULE", "0 2 * * *"),
    start_date=datetime(2026, 1, 1),  # in core.default_timezone
    dagrun_timeout=timedelta(hours=23),
    **COMMON,
):
    scan = Stage(task_id="scan", options=f"--unchanged-exit-code {EXIT_SKIP}", execution_timeout=timedelta(hours=2))
    extract = Stage(task_id="extract", execution_timeout=timedelta(hours=20))
    verify = Stage(task_id="verify", execution_timeout=timedelta(hours=4))
    train = Stage(task_id="train", execution_timeout=timedelta(hours=12))
    evaluate = Stage(task_id="evaluate", execution_timeout=timedelta(hours=2))
    promote = Stage(
        task_id="promote",
        options=f'--run-key "${{RUN_KEY//[^A-Za-z0-9]/-}}" --kept-exit-code {EXIT_SKIP}',
        env={"RUN_KEY": "{{ dag_run.logical_date | ts_nodash if dag_run.logical_date else run_id }}"},
        outlets=[MODEL],
        execution_timeout=timedelta(minutes=30),
    )
    # also where the champion stays; not where there was nothing new
    report = Stage(
        task_id="report", trigger_rule="none_failed_min_one_success", execution_timeout=timedelta(minutes=30)
    )

    scan >> extract >> verify >> train >> evaluate >> promote >> report
    evaluate >> report
