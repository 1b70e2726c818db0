"""Watching a run: progress on the terminal, counters, and the page on Dask's dashboard.

- `progress`: the bar and the log
- `stage_counters`: finished items of a stage, its speed and the time left
- `events`: events of a running extraction
- `counters`: counters of a running extraction, fed by events
- `monitor`: where the events of a run are reported
- `dashboard`: the page /pipeline and the metrics for Prometheus
"""
