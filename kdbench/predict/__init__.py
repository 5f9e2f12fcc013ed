"""Peak memory of a step without the device it is for: a trace of allocations, and a replay.

A child process (`python -m kdbench.predict`), since it imports torch.
"""
