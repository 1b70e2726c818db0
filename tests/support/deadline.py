"""How long tests wait at most. Airflow's environment imports this, so it needs no packages."""

DEADLINE_S = 900
"""The longest wait for anything, on any machine: it ends only what would never end."""
