"""Stage 2: cached vectors and labels to a bundle and its report."""
