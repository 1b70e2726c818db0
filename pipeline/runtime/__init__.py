"""Where tasks run: this process, or a Dask cluster.

- `executor`: the interface, and running in this process
- `dask_executor`: running tasks on a Dask cluster
- `dask_session`: starting a cluster or connecting to one, and leaving it
- `dask_monitor`: the page and the report of a run on a cluster
- `overdue`: ending tasks that take longer than they may
- `scheduler_queries`: which tasks run too long, and how workers died
- `dask_errors`: the error of a lost scheduler
- `submission_notes`: keeping the scheduler's memory constant
- `nanny`: replacing workers that die while they start
- `profiles`: the clusters of cluster.yaml
- `preflight`: checks of every worker before it gets work
- `code_upload`: sending this package to workers that lack it
"""
