"""Hold the ledger against the CUDA allocator's own history, and keep what the allocator did.

`python -m tests.gpu.histories --matrix FILE --device cuda:0 --out DIR` writes a file per cell,
JSON and gzip: the segments before two plain steps, each action of the allocator in them as
`[action, bytes, address, stream]`, and the peak of an accounting step as the ledger tells it and
as the history does. On a CPU, which has no such history, torch's profiler stands in its place and
there are no actions. A cell that fails or disagrees is in its file too, and in the exit code.
"""

import argparse
import gc
import gzip
import json
import re
import sys
import tempfile
import traceback
from pathlib import Path

import torch

from kdbench import load_matrix
from kdbench.common.errors import KdbenchError
from kdbench.worker.probes.account import account_step
from kdbench.worker.probes.oracle import storage_bytes
from tests.support.cuda_histories import cuda_blocks, cuda_peak
from tests.support.models import session_of

_MOST_ACTIONS = 2**20
# Beyond what was held before the step: what libraries take for themselves within it.
_MOST_APART = 0.02


def main():
    options = parse()
    device = torch.device(options.device)
    try:
        matrix = load_matrix(options.matrix, preset=options.preset)
    except KdbenchError as error:
        print(error, file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    failed = 0
    for cell in {run.cell.label: run.cell for run in matrix.runs()}.values():
        told = {"label": cell.label, "torch": torch.__version__, "device": str(device)}
        try:
            told |= gathered(cell, device)
        except Exception:  # noqa: BLE001 - whatever it is, it is kept, and the others are done
            told["error"] = traceback.format_exc()
        gc.collect()
        name = re.sub(r"[^A-Za-z0-9=.]+", "-", cell.label)
        write(options.out / f"{name}.json.gz", told)
        problem = told.get("error") or disagreement(told)
        print(f"{cell.label}: {problem or 'the ledger agrees'}", flush=True)
        failed += problem is not None
    return 1 if failed else 0


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--matrix", type=Path, required=True)
    parser.add_argument("--preset", default=None)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def gathered(cell, device):
    """What one cell's steps do, as JSON."""
    with tempfile.TemporaryDirectory() as cache:
        session = session_of(cell, device, Path(cache))
    draws = session.draws(0)
    session.timed_step(next(draws))
    if device.type == "cpu":
        account = account_step(session, next(draws))
        return {
            "ledger_peak_bytes": account.ledger.peak_bytes(),
            "second_peak_bytes": account.second_peak_bytes,
            # as much as the processor's kernels ask for within operations
            "scratch_bytes": account.scratch_bytes,
            "held_elsewhere_bytes": 0,
            "segments": None,
            "steps": None,
        }
    segments = torch.cuda.memory._snapshot()["segments"]
    steps = [recorded(device, lambda: session.step(next(draws)))[1] for _ in range(2)]
    draw = next(draws)
    held = ledgers_start(session, draw)
    before, actions, account = accounted(session, device, draw)
    return {
        "ledger_peak_bytes": account.ledger.peak_bytes(),
        # of what was asked for, where the allocator's own peak is of rounded blocks
        "second_peak_bytes": cuda_peak(before, actions),
        "requested_peak_bytes": torch.cuda.memory_stats(device)["requested_bytes.all.peak"],
        "allocated_peak_bytes": account.second_peak_bytes,
        # cuBLAS keeps its workspace, for instance
        "held_elsewhere_bytes": sum(before.values()) - held,
        "card": torch.cuda.get_device_name(device),
        "segments": [plain_segment(segment) for segment in segments],
        "steps": [[plain_action(action) for action in step] for step in steps],
    }


def ledgers_start(session, draw):
    """Bytes on the card that the ledger is told of before a step."""
    tensors = [*session.student.parameters(), *session.student.buffers(), *session.data.tensors()]
    tensors += [p.grad for p in session.student.parameters() if p.grad is not None]
    tensors += [v for s in session.optimizer.state.values() for v in s.values()]
    if session.teacher is not None:
        tensors += [*session.teacher.parameters(), *session.teacher.buffers()]
    if session.embeddings is not None:
        tensors.append(session.embeddings)
    return storage_bytes(t for t in [*tensors, *draw.tensors()] if t.device.type == "cuda")


def accounted(session, device, draw):
    """Run the accounting step; (blocks before it, the allocator's actions in it, its account)."""
    kept = []
    before, actions = recorded(device, lambda: kept.append(account_step(session, draw)))
    return before, actions, kept[0]


def recorded(device, work):
    """Run something with the allocator's history on; (blocks before it, its actions)."""
    torch.cuda.synchronize(device)
    before = cuda_blocks(torch.cuda.memory._snapshot(), device.index)
    torch.cuda.memory._record_memory_history(
        enabled="all", context=None, stacks="python", max_entries=_MOST_ACTIONS, clear_history=True
    )
    try:
        work()
        torch.cuda.synchronize(device)
        actions = torch.cuda.memory._snapshot()["device_traces"][device.index]
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
    if len(actions) >= _MOST_ACTIONS:
        raise RuntimeError(f"a step has more than {_MOST_ACTIONS} actions: some are lost")
    return before, actions


def plain_action(action):
    return [action["action"], action["size"], action.get("addr"), action.get("stream")]


def plain_segment(segment):
    names = ("address", "total_size", "stream", "segment_type")
    blocks = [[b["address"], b["size"], b["requested_size"], b["state"]] for b in segment["blocks"]]
    return {**{name: segment[name] for name in names}, "blocks": blocks}


def disagreement(told):
    """Say how ledger and history disagree; None where they agree."""
    gap = told["second_peak_bytes"] - told["ledger_peak_bytes"] - told["held_elsewhere_bytes"]
    gap -= told.get("scratch_bytes") or 0
    if abs(gap) > _MOST_APART * told["ledger_peak_bytes"]:
        return f"the ledger is {gap:,} bytes below the second source"
    requested = told.get("requested_peak_bytes")
    if requested is not None and requested != told["second_peak_bytes"]:
        return f"the replay comes to {told['second_peak_bytes']:,} bytes, torch to {requested:,}"
    return None


def write(path, told):
    with gzip.open(path, "wt") as file:
        json.dump(told, file)


if __name__ == "__main__":
    sys.exit(main())
