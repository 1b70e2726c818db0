"""Where tasks run: this process, or a Dask cluster.

- `executor`: the interface, and running in this process
- `dask_executor`: running tasks on a Dask cluster
- `dask_session`: connecting to a scheduler
- `dask_monitor`: the page and the report of a run on a cluster
- `submission_notes`: keeping the scheduler's memory constant
- `profiles`: the clusters of cluster.yaml
- `preflight`: checks of every worker before it gets work
- `code_upload`: sending this package to workers that lack it
"""
