"""The optional last step: the last blocks of a network learn too."""
