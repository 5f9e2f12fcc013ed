"""Data sets: read, checked, decoded and batched."""
