"""What torch sees of this machine, as one JSON object on the last line of the output.

A process of its own, so that whoever asks never loads torch: python -P -m kdbench.worker.device
"""

import json
import platform
import sys
from typing import Any

import torch


def describe() -> dict[str, Any]:
    """Describe torch's build and devices; `bf16` is whether the first device computes in it."""
    available = torch.cuda.is_available()
    cards = range(torch.cuda.device_count()) if available else ()
    return {
        "torch_version": torch.__version__,
        "cuda_build": torch.version.cuda,
        "cuda_available": available,
        "cuda_problem": None if available or not torch.version.cuda else _cuda_problem(),
        "threads": torch.get_num_threads(),
        "devices": [_device(index) for index in cards],
        "bf16": torch.cuda.is_bf16_supported(including_emulation=False)
        if available
        else _cpu_computes_bf16(),
    }


def _device(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    uuid = getattr(properties, "uuid", None)
    return {
        "index": index,
        "name": properties.name,
        "uuid": None if uuid is None else str(uuid),
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
    }


def _cuda_problem() -> str | None:
    # is_available only says no; the start of CUDA says why, such as a driver that is too old.
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return next(iter(str(error).strip().splitlines()), None)
    return None


def _cpu_computes_bf16() -> bool:
    features = torch.cpu.get_capabilities()
    names = ("avx512_bf16", "amx_bf16") if platform.machine() == "x86_64" else ("bf16", "arm_bf16")
    return any(features.get(name) is True for name in names)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(describe()) + "\n")
