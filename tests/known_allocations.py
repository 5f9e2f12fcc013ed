"""A worker that allocates what is known: `python known_allocations.py EVENTS.jsonl`.

It tells its phases as a worker does, each with `held` (bytes that it allocates in it), `resident`
(its resident memory before) and `counted` (the ledger's peak of the same tensors).
"""

import sys
import time
from pathlib import Path

import psutil
import torch

from kdbench.worker.events import Events
from kdbench.worker.ledger import Ledger
from kdbench.worker.probes import Probes

MIB = 2**20
# phase, MiB, seconds: a plateau, a spike between two samples, a lower plateau
PROFILE = (
    ("warmup", 128, 0.6),
    ("measure", 256, 0.6),
    ("account", 1024, 0.02),
    ("evaluate", 64, 0.6),
)


def main(path):
    events, probes = Events(path), Probes(torch.device("cpu"))
    process = psutil.Process()
    torch.set_num_threads(1)
    with Ledger(torch.device("cpu")):
        allocate(MIB)  # what torch and the ledger set up for their first is no phase's
    # A sampler that is told of this process only now has seen it before the first phase.
    print("up", flush=True)
    sys.stdin.readline()
    for name, size, seconds in PROFILE:
        with events.phase(name, probes) as phase:
            resident = process.memory_info().rss
            ledger = Ledger(torch.device("cpu"))
            with ledger:
                held = allocate(size * MIB)
            time.sleep(seconds)
            phase |= {"held": size * MIB, "resident": resident, "counted": ledger.peak_bytes()}
            del held
    print("done", flush=True)
    sys.stdin.readline()


def allocate(size):
    """Bytes that are written to, so that the system has to find memory for them."""
    return torch.ones(size, dtype=torch.uint8)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
