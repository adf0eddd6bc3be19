"""Stage 1: images to bottleneck vectors, cached."""
