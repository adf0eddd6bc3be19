"""Stage 2: cached vectors to a trained classifier."""
