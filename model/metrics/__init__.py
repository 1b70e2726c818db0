"""Metrics and how far they can be trusted.

- `bootstrap`: intervals by resampling speakers
"""
