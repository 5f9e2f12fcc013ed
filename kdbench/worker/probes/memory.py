"""Cheap in-process probes: the allocator's peaks and the kernel's high-water mark."""

import re
from pathlib import Path
from typing import Any

import torch

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"  # proc(5): reset VmHWM to the current resident size


class Probes:
    """The peaks of a step and of a phase on one device.

    On CUDA the allocator's own peaks are exact; every step resets them, and a phase keeps the
    highest. On the host VmHWM is exact, and every phase resets it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._cuda = device.type == "cuda"
        self._highest = (0, 0)
        self._host_exact = False
        if self._cuda:
            # The allocator's peaks cannot be reset before CUDA is up.
            torch.cuda.set_device(device)
            torch.cuda.init()

    def synchronize(self) -> None:
        """Wait until the device has finished its work."""
        if self._cuda:
            torch.cuda.synchronize(self._device)

    def start_phase(self) -> None:
        """Forget the peaks so far."""
        self._host_exact = _reset_host_peak()
        self._highest = (0, 0)
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)

    def start_step(self) -> None:
        """Forget the step before, but keep its peak for the phase."""
        self._keep_highest()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats(self._device)

    def step_peaks(self) -> dict[str, int | None]:
        """Return the peaks since `start_step`, in bytes; None: no caching allocator."""
        allocated, reserved = self._device_peaks() if self._cuda else (None, None)
        return {"allocated_peak_bytes": allocated, "reserved_peak_bytes": reserved}

    def phase_peaks(self) -> dict[str, Any]:
        """Return the peaks since `start_phase`, in bytes, each with its source."""
        self._keep_highest()
        allocated, reserved = self._highest if self._cuda else (None, None)
        host = _host_peak() if self._host_exact else None
        return {
            "allocated_peak_bytes": allocated,
            "reserved_peak_bytes": reserved,
            "host_peak_bytes": host,
            "host_source": "vmhwm" if host is not None else None,
        }

    def _device_peaks(self) -> tuple[int, int]:
        return (
            torch.cuda.max_memory_allocated(self._device),
            torch.cuda.max_memory_reserved(self._device),
        )

    def _keep_highest(self) -> None:
        if self._cuda:
            now = self._device_peaks()
            self._highest = (max(self._highest[0], now[0]), max(self._highest[1], now[1]))


def _reset_host_peak() -> bool:
    try:
        _CLEAR_REFS.write_text(_RESET_PEAK, encoding="utf-8")
    except OSError:  # macOS, or a container that forbids it: the sampler's maximum remains
        return False
    return True


def _host_peak() -> int | None:
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB$", _STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None
