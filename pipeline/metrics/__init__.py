"""Numbers about predictions: probabilities and labels in, plain data out."""
