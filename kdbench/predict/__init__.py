"""Predicts a step's peak memory without its device, in a child process, since it imports torch."""
