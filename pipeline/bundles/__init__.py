"""What is saved, loaded and predicts: recipe, head, classes and safeguards in one folder."""
