"""What comes after a bundle that works: its network tuned."""
