"""Train on new recordings every night at 02:00, and promote the new model if it is better than the champion."""

import os
from datetime import datetime, timedelta

from airflow.sdk import DAG
from language_id import DAG_ARGUMENTS, MODEL, SKIP_EXIT_CODE, Stage

with DAG(
    "language_id_train",
    description="Scan, extract, verify, train, evaluate, promote, report",
    doc_md=__doc__,
    schedule=os.environ.get("LANGUAGE_ID_SCHEDULE", "0 2 * * *"),
    start_date=datetime(2026, 1, 1),  # in core.default_timezone
    dagrun_timeout=timedelta(hours=23),
    **DAG_ARGUMENTS,
):
    scan = Stage(
        task_id="scan", options=f"--unchanged-exit-code {SKIP_EXIT_CODE}", execution_timeout=timedelta(hours=2)
    )
    extract = Stage(task_id="extract", execution_timeout=timedelta(hours=20))
    verify = Stage(task_id="verify", execution_timeout=timedelta(hours=4))
    train = Stage(task_id="train", execution_timeout=timedelta(hours=12))
    evaluate = Stage(task_id="evaluate", execution_timeout=timedelta(hours=2))
    promote = Stage(
        task_id="promote",
        options=f'--run-key "${{RUN_KEY//[^A-Za-z0-9]/-}}" --kept-exit-code {SKIP_EXIT_CODE}',
        env={"RUN_KEY": "{{ dag_run.logical_date | ts_nodash if dag_run.logical_date else run_id }}"},
        outlets=[MODEL],
        execution_timeout=timedelta(minutes=30),
    )
    # runs if the champion is kept, but not if there are no new recordings
    report = Stage(
        task_id="report", trigger_rule="none_failed_min_one_success", execution_timeout=timedelta(minutes=30)
    )

    scan >> extract >> verify >> train >> evaluate >> promote >> report
    evaluate >> report
