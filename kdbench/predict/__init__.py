"""Predicts a step's peak memory without its device: a trace of allocations, and a replay.

Runs as a child process (`python -m kdbench.predict`), since it imports torch.
"""
