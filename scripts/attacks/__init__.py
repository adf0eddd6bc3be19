"""Attacks on the promises of the package; each is a function that returns counts. `torture.py` runs them at any scale."""
