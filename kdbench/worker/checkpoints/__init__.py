"""Checkpoints of a training, and the files that keep them."""
