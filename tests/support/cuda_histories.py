"""Histories of the CUDA allocator, an independent source for peaks on a GPU."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def cuda_blocks(snapshot: Mapping[str, Any], device: int) -> dict[int, int]:
    """Find the live blocks of the CUDA allocator: requested bytes by address.

    Args:
        snapshot: from `torch.cuda.memory._snapshot()`.
        device: index of the GPU.
    """
    return {
        block["address"]: block["requested_size"]
        for segment in snapshot["segments"]
        if segment.get("device", device) == device  # a single GPU's snapshot may omit it
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    }


def cuda_peak(blocks: Mapping[int, int], trace: Iterable[Mapping[str, Any]]) -> int:
    """Replay a history of the CUDA allocator and return the most bytes requested at once.

    Args:
        blocks: the live blocks when the history began, from `cuda_blocks`.
        trace: the GPU's entry of a later snapshot's `device_traces`: mappings with `action`,
            `addr` and `size`. Sizes are the requested ones, which the allocator rounds up to
            512 B; a block counts as freed when it is returned, not when its stream is done with it.

    Raises:
        ValueError: a block is freed that was not live: the history is incomplete.
    """
    live = dict(blocks)
    now = highest = sum(live.values())
    for entry in trace:
        if entry["action"] == "alloc":
            live[entry["addr"]] = entry["size"]
            now += entry["size"]
            highest = max(highest, now)
        elif entry["action"] == "free_requested":
            if entry["addr"] not in live:
                raise ValueError(f"a block is freed that was never live: {entry['addr']:#x}")
            now -= live.pop(entry["addr"])
    return highest
