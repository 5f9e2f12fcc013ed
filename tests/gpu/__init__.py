"""What needs an NVIDIA GPU: `python -m tests.gpu`. Not part of the ordinary test run."""
