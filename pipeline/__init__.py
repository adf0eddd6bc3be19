"""Two-stage feature extraction for transfer learning on images."""
