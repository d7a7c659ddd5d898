"""Comparison of two checkpoints: pairs of leaves, their differences and their sizes."""
