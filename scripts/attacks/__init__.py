"""Attacks on the guarantees of the package: functions that return counts, which `torture.py` runs and checks."""
