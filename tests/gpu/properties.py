"""Write down what a card says of itself: `python -m tests.gpu.properties --out FILE.json`.

torch's view, the raw `cudaDeviceProp` and all of the runtime's attributes, cuDNN's own descriptor
of the device (which lets cuDNN plan for it elsewhere), what NVML tells, and the device memory that
the context and the libraries take as they are first used.
"""

import argparse
import ctypes
import itertools
import json
import os
import platform
import re
import sys
import time
from pathlib import Path

import pynvml
import torch

_ATTRIBUTES = range(1, 160)
# cudnn_graph.h
_DEVICEPROP, _HANDLE, _JSON, _TYPE_HANDLE, _TYPE_CHAR = 38, 2701, 2702, 0, 24


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    told = {"torch": torch.__version__, "cuda": torch.version.cuda, "python": sys.version}
    told["kernel"] = platform.release()
    for name, asked in {
        "nvml": nvml,
        "memory": first_uses,
        "properties": properties,
        "runtime": runtime,
        "cudnn": cudnn,
    }.items():
        try:
            told[name] = asked(options.device)
        except Exception as error:  # noqa: BLE001 - what can be told is kept
            told[name] = {"error": repr(error)}
        print(f"{name}: {json.dumps(told[name])[:2000]}", flush=True)
    options.out.write_text(json.dumps(told, indent=1) + "\n")
    return 1 if any("error" in value for value in told.values() if isinstance(value, dict)) else 0


def nvml(index):
    """What NVML tells of a card, and how long each call takes, in microseconds."""
    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    told = {"driver": pynvml.nvmlSystemGetDriverVersion()}
    for name in (
        "Name",
        "MemoryInfo",
        "TotalEnergyConsumption",
        "PowerUsage",
        "EnforcedPowerLimit",
        "UtilizationRates",
        "ComputeRunningProcesses",
        "Temperature",
        "ClockInfo",
        "MaxClockInfo",
        "EccMode",
        "PersistenceMode",
        "CurrentClocksEventReasons",
        "CudaComputeCapability",
        "MigMode",
    ):
        arguments = {"Temperature": (0,), "ClockInfo": (1,), "MaxClockInfo": (1,)}.get(name, ())
        if name == "MemoryInfo":
            arguments = (pynvml.nvmlMemory_v2,)
        call = getattr(pynvml, f"nvmlDeviceGet{name}")
        try:
            times = []
            for _ in range(20):
                before = time.perf_counter_ns()
                value = call(handle, *arguments)
                times.append((time.perf_counter_ns() - before) / 1e3)
            told[name] = {"value": repr(value), "microseconds": sorted(times)[10]}
        except pynvml.NVMLError as error:
            told[name] = {"refused": str(error)}
    told["energy_millijoules"] = changes(
        lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle), 1.0
    )
    told["power_milliwatts"] = changes(lambda: pynvml.nvmlDeviceGetPowerUsage(handle), 1.0)
    return told


def changes(read, seconds):
    """How often a reading changes: seconds between changes, in the median, and how many."""
    end, last, at = time.monotonic() + seconds, None, []
    while time.monotonic() < end:
        value = read()
        if value != last:
            last = value
            at.append(time.monotonic())
    apart = sorted(later - before for before, later in itertools.pairwise(at))
    return {"changes": len(at), "median_seconds": apart[len(apart) // 2] if apart else None}


def first_uses(index):
    """Device memory in use after each first use, beside what torch's allocator reserves."""
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    rows = []

    def note(name):
        torch.cuda.synchronize() if torch.cuda.is_initialized() else None
        processes = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
        rows.append(
            {
                "after": name,
                "used": pynvml.nvmlDeviceGetMemoryInfo(handle, pynvml.nvmlMemory_v2).used,
                "reserved": torch.cuda.memory_reserved() if torch.cuda.is_initialized() else 0,
                "processes": [[p.pid, p.usedGpuMemory] for p in processes],
                "mine": os.getpid(),
            }
        )

    note("nothing")
    torch.cuda.init()
    note("init")
    a = torch.ones(64, 64, device=f"cuda:{index}")
    note("a tensor")
    a + a
    note("a kernel")
    b = (a @ a).requires_grad_()
    note("a product")
    (b @ b).sum().backward()
    note("a backward")
    images = torch.ones(8, 3, 32, 32, device=a.device)
    torch.nn.Conv2d(3, 64, 4, stride=4, device=a.device)(images).sum().backward()
    note("a convolution")
    torch.nn.Conv2d(3, 64, 3, padding=1, device=a.device)(images).sum().backward()
    note("a 3 x 3 convolution")
    for dtype in (torch.float32, torch.bfloat16):
        q = torch.ones(2, 4, 16, 32, device=a.device, dtype=dtype, requires_grad=True)
        torch.nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()
        note(f"attention in {dtype}")
    weights = [torch.ones(64, device=a.device, requires_grad=True)]
    weights[0].grad = torch.ones_like(weights[0])
    torch.optim.AdamW(weights, fused=True).step()
    note("a fused optimizer")
    return {"rows": rows}


def properties(index):
    found = torch.cuda.get_device_properties(index)
    return {
        name: value if isinstance(value := getattr(found, name), int | float | str) else str(value)
        for name in dir(found)
        if not name.startswith("_")
    }


def library(name):
    """A library that this process has loaded already."""
    maps = Path("/proc/self/maps").read_text()
    found = re.search(rf"(/\S*/{name}\.so\S*)", maps)
    if found is None:
        raise OSError(f"{name} is not loaded")
    return ctypes.CDLL(found.group(1)), found.group(1)


def runtime(index):
    """The runtime's structure of properties, as bytes, and its attributes by their number."""
    cudart, path = library("libcudart")
    raw = ctypes.create_string_buffer(4096)
    get = getattr(cudart, "cudaGetDeviceProperties", None) or cudart.cudaGetDeviceProperties_v2
    status = get(raw, index)
    attributes = {}
    for number in _ATTRIBUTES:
        value = ctypes.c_int()
        if cudart.cudaDeviceGetAttribute(ctypes.byref(value), number, index) == 0:
            attributes[number] = value.value
    cudart.cudaGetLastError()
    free, total, version = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_int()
    cudart.cudaMemGetInfo(ctypes.byref(free), ctypes.byref(total))
    cudart.cudaRuntimeGetVersion(ctypes.byref(version))
    return {
        "library": Path(path).name,
        "version": version.value,
        "status": status,
        "cudaDeviceProp": raw.raw.rstrip(b"\0").hex(),
        "attributes": attributes,
        "memory_free": free.value,
        "memory_total": total.value,
    }


def cudnn(index):
    """cuDNN's descriptor of a device, as it serialises it itself."""
    torch.cuda.set_device(index)
    library_, path = library("libcudnn")
    handle, descriptor = ctypes.c_void_p(), ctypes.c_void_p()
    steps = {"create": library_.cudnnCreate(ctypes.byref(handle))}
    steps["descriptor"] = library_.cudnnBackendCreateDescriptor(
        _DEVICEPROP, ctypes.byref(descriptor)
    )
    steps["set"] = library_.cudnnBackendSetAttribute(
        descriptor, _HANDLE, _TYPE_HANDLE, ctypes.c_int64(1), ctypes.byref(handle)
    )
    steps["finalize"] = library_.cudnnBackendFinalize(descriptor)
    text, count = ctypes.create_string_buffer(65536), ctypes.c_int64()
    steps["get"] = library_.cudnnBackendGetAttribute(
        descriptor, _JSON, _TYPE_CHAR, ctypes.c_int64(len(text)), ctypes.byref(count), text
    )
    library_.cudnnGetVersion.restype = ctypes.c_size_t
    told = {"library": Path(path).name, "version": library_.cudnnGetVersion(), "statuses": steps}
    if any(steps.values()):
        message = ctypes.create_string_buffer(2048)
        library_.cudnnGetLastErrorString(message, ctypes.c_size_t(len(message)))
        return {**told, "error": message.value.decode(errors="replace")}
    return {**told, "device": json.loads(text.raw[: count.value].rstrip(b"\0").decode())}


if __name__ == "__main__":
    sys.exit(main())
