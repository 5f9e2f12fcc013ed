"""`python -m kdbench`."""

import sys
from pathlib import Path

# `python -m` looks for modules in the current folder first, which may be results of somebody
# else's with a torch.py in them. Where kdbench itself lies there, it stays.
if not sys.flags.safe_path and Path(sys.path[0]).resolve() != Path(__file__).resolve().parents[1]:
    del sys.path[0]

from kdbench.cli import entry_point

if __name__ == "__main__":
    entry_point()
