"""Attacks on the promises of the package: functions that return counts, which `torture.py` runs and judges."""
