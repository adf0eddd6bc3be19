"""Fine-tuning: an optional last step that trains the last blocks of the network too."""
