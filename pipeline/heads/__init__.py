"""The classifiers: estimators, solvers and their temperatures."""
