"""Trained classifiers in a folder: recipe, head, classes and safeguards; saved, loaded and used to predict."""
