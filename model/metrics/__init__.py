"""Scores of a model on the test split, and the metrics computed from them.

- `score_file`: metrics/NAME.scores.parquet, one row per test sequence
- `levels`: the scores per frame, per sequence and per recording
- `classification`: accuracy and macro F1
- `scores`: all metrics by name; a new metric is registered here
- `estimate`: a value with its interval
- `example`: the test recording that the report shows
- `bootstrap`: intervals from resampling speakers
- `metrics_file`: metrics/NAME.json
"""
