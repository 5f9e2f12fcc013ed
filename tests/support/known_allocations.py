"""A worker that allocates what is known: `python known_allocations.py EVENTS.jsonl SAMPLES.jsonl`.

It holds a plateau until a sample of it is in the second file, however late that comes. It tells its
phases as a worker does, each with `held` (bytes that it allocates in it), `resident` (its resident
memory before) and `counted` (the ledger's peak of the same tensors).
"""

import json
import sys
import time
from pathlib import Path

import psutil
import torch

from kdbench.worker.events import Events
from kdbench.worker.probes.ledger import Ledger
from kdbench.worker.probes.memory import Probes

MIB = 2**20
SPIKE = "account"
# phase, MiB: a plateau, a spike that samples may miss, a lower plateau
PROFILE = (("warmup", 128), ("measure", 256), (SPIKE, 1024), ("evaluate", 64))


def main(path, samples):
    events, probes = Events(path), Probes(torch.device("cpu"))
    process = psutil.Process()
    torch.set_num_threads(1)
    with Ledger(torch.device("cpu")):
        allocate(MIB)  # what torch and the ledger set up for their first is no phase's
    # A sampler that is told of this process only now has seen it before the first phase.
    print("up", flush=True)
    sys.stdin.readline()
    for name, size in PROFILE:
        with events.phase(name, probes) as phase:
            resident = process.memory_info().rss
            ledger = Ledger(torch.device("cpu"))
            with ledger:
                held = allocate(size * MIB)
            if name != SPIKE:
                wait_for_sample(samples, after=time.monotonic_ns())
            phase |= {"held": size * MIB, "resident": resident, "counted": ledger.peak_bytes()}
            del held
    print("done", flush=True)
    sys.stdin.readline()


def wait_for_sample(path, *, after):
    """Wait for a sample that was taken after a moment; they are written once a second."""
    while True:
        whole = [line for line in path.read_text().splitlines(keepends=True) if line[-1] == "\n"]
        if whole and json.loads(whole[-1])["monotonic_ns"] > after:
            return
        time.sleep(0.02)


def allocate(size):
    """Bytes that are written to, so that the system has to find memory for them."""
    return torch.ones(size, dtype=torch.uint8)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
