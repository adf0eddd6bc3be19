"""Metrics of predictions: probabilities and labels in, plain data out."""
