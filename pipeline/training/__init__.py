"""Stage 2: from cached vectors and labels to a bundle and its report."""
