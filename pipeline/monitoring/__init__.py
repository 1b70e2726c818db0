"""Watching a run: progress on the terminal, counters, and the page on Dask's dashboard.

- `progress`: the bar and the log
- `monitor`: the events of a run, and where they are reported
- `counters`: counts and speeds of a running extraction
- `dashboard`: the page /pipeline and the metrics for Prometheus
"""
