"""Where tasks run: this process, or a Dask cluster.

- `executor`: the interface, and running in this process
- `dask_executor`: running tasks on a Dask cluster
- `dask_session`: starting a cluster or connecting to one, and leaving it
- `dask_monitor`: the page and the report of a run on a cluster
- `overdue`: ending tasks that take longer than they may
- `scheduler_queries`: which tasks run too long, and how workers died
- `dask_errors`: the error of a lost scheduler
- `submission_notes`: keeping the scheduler's memory constant
- `workers`: the workers of a cluster, and waiting for them
- `outlook`: what a cluster without workers reports
- `nanny`: replacing workers that die while they start
- `profiles`: the clusters of cluster.yaml
- `cluster_classes`: what single classes of clusters need
- `job_queue`: workers that are jobs of a queue, such as Slurm's
- `memory_limit`: memory limits that are too small for a worker
- `dashboard_address`: the addresses of web pages
- `preflight`: checks of every worker before it gets work
- `code_upload`: sending this package to workers that lack it
"""
