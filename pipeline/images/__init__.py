"""Decode images to pixels; list images with their labels, splits and groups."""
