"""Replay the CUDA allocator's recorded histories through kdbench's model of it.

`histories.py` records, on a card, the segments before two steps and each action of the allocator in
them. Here a model starts with those segments and is asked for the same blocks: it must ask the
device for the same segments, at the same actions, and hold as many bytes.
`python -m tests.gpu.replays FOLDER` does so with all histories in a folder.
"""

import gzip
import json
import sys
from pathlib import Path

from kdbench.predict.allocator import SMALL_SEGMENT, Block, CachingAllocator

_SMALL = "small"


def read_history(path: Path):
    with gzip.open(path, "rt") as file:
        return json.load(file)


def started(segments):
    """A model that holds what the card's allocator held, and its blocks by their address."""
    allocator, blocks = CachingAllocator(), {}
    for segment in segments:
        small = segment["segment_type"] == _SMALL
        assert not small or segment["total_size"] == SMALL_SEGMENT
        allocator.reserved += segment["total_size"]
        before = None
        for address, size, _requested, state in segment["blocks"]:
            block = Block(address, size, small, held=state != "inactive", before=before)
            if before is not None:
                before.after = block
            before = block
            if block.held:
                blocks[address] = block
                allocator.allocated += size
            else:
                allocator._add_free(block)
        allocator._next_address = max(
            allocator._next_address, segment["address"] + segment["total_size"]
        )
    return allocator, blocks


def differences(told):
    """List where the model does otherwise than a recorded history; empty where nowhere."""
    allocator, blocks = started(told["segments"])
    found = []
    for number, actions in enumerate(told["steps"]):
        reserved = allocator.reserved
        recorded = reserved
        for place, (action, size, address, _stream) in enumerate(actions):
            if action == "segment_alloc":
                recorded += size
            elif action == "segment_free":
                recorded -= size
            elif action == "alloc":
                blocks[address] = allocator.allocate(size)
                if allocator.reserved != recorded:
                    found.append(
                        f"step {number}, action {place}: {size:,} bytes: the card holds "
                        f"{recorded:,} bytes, the model {allocator.reserved:,}"
                    )
                    return found
            elif action == "free_completed":
                allocator.release(blocks.pop(address))
    return found


def main():
    failed = 0
    for path in sorted(Path(sys.argv[1]).glob("*.json.gz")):
        told = read_history(path)
        if told.get("segments") is None:
            print(f"{path.name}: no history" + (f": {told['error']}" if "error" in told else ""))
            failed += "error" in told
            continue
        found = differences(told)
        print(f"{path.name}: {found[0] if found else 'the model does the same'}")
        failed += bool(found)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
