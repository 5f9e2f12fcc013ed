"""What NVML tells of the cards: a thin reader, in which what is not told is None.

A driver may be absent, old, half updated, or lose a card while it runs. None of that raises here:
a measurement goes on without the figure, and the figure is null.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar

import pynvml

T = TypeVar("T")

AVAILABLE = "available"
NOT_SEEN = "not known until a process uses the card"

_LOST = frozenset((pynvml.NVML_ERROR_GPU_IS_LOST, pynvml.NVML_ERROR_GPU_NOT_FOUND))
_WHY_NOT = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver: libnvidia-ml.so.1 cannot be loaded",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is installed, but not loaded",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the NVIDIA library and kernel module are of "
    "different versions, as after an update: restart the machine, or reload the module",
    pynvml.NVML_ERROR_NO_PERMISSION: "no permission to talk to the NVIDIA driver",
}


@dataclass(frozen=True)
class Gpu:
    """One card, and what its driver is able to tell of it."""

    index: int
    uuid: str
    name: str | None
    #: None where the card shares the host's memory, or the driver does not tell
    memory_total_bytes: int | None
    driver_version: str | None
    #: the newest CUDA that the driver supports, such as "12.9"
    cuda_driver_version: str | None
    #: "available", or why the memory of single processes is not
    process_memory: str
    energy_counter: bool
    #: partitioned into instances; figures of the card then cover all of them
    mig: bool
    power: bool


class Nvml:
    """NVML as `open_nvml` found it; `problem` says why there is none, and is None if there is."""

    def __init__(self, problem: str | None) -> None:
        self.problem = problem

    def count(self) -> int:
        """Return how many cards the driver knows, also those that no longer answer."""
        return 0 if self.problem else _or_none(pynvml.nvmlDeviceGetCount) or 0

    def gpus(self) -> list[Gpu]:
        """Return the cards that answer, in NVML's order (that of the PCI bus)."""
        found = (_describe(index) for index in range(self.count()))
        return [gpu for gpu in found if gpu is not None]

    def reader(self, uuid: str) -> GpuReader:
        """Return a reader for one card; it reads None where there is no such card."""
        return GpuReader(uuid)


@contextmanager
def open_nvml() -> Iterator[Nvml]:
    """Open NVML. Never raises for a driver that is absent or broken: see `Nvml.problem`."""
    problem = _start()
    try:
        yield Nvml(problem)
    finally:
        if problem is None:
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()


class GpuReader:
    """Reads one card, addressed by UUID: indices change with the order that CUDA is told.

    Every figure is None where it is not told. After the card is lost all are, and `problem` says
    so; NVML must stay open meanwhile.
    """

    def __init__(self, uuid: str) -> None:
        self.problem: str | None = None
        self._has_memory_v2 = True
        try:
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError as error:
            self._handle = None
            self.problem = f"card {uuid}: {error}"

    def device_bytes(self) -> int | None:
        """Return the card's used memory, all its processes together, in bytes.

        The driver's own reserve is not in it, except on drivers too old to tell it apart.
        """
        if self._has_memory_v2:
            try:
                return self._read(_used_v2)
            except _NoMemoryV2Error:
                # For good: the two versions count differently, and a series must not mix them.
                self._has_memory_v2 = False
        return self._read(_used_v1)

    def process_bytes(self, pid: int, children: Collection[int] = ()) -> int | None:
        """Return the card's memory held by a process and its children, in bytes.

        None where the driver tells nothing, or 0, of any of them (containers report 0), and where
        none is on the card's list: it may be listed under its number in another namespace.
        """
        listed = self._read(_compute_processes)
        if listed is None:
            return None
        ours = {pid, *children}
        used = [used for owner, used in listed if owner in ours]
        # A sum with a part unknown would be a number, and wrong.
        return sum(u or 0 for u in used) if used and all(used) else None

    def neighbours(self, pids: Collection[int] = ()) -> list[int] | None:
        """Return the other processes that compute on the card, as the driver numbers them.

        Inside a container `pids` may have other numbers there, so ask before they use the card.
        """
        listed = self._read(_compute_processes)
        if listed is None:
            return None
        return sorted({owner for owner, _ in listed if owner not in pids})

    def power_watts(self) -> float | None:
        """Return the power draw; recent cards average it over a second, in their driver."""
        return _thousandth(self._read(pynvml.nvmlDeviceGetPowerUsage))

    def energy_joules(self) -> float | None:
        """Return the card's energy counter, which starts when the driver is loaded."""
        return _thousandth(self._read(pynvml.nvmlDeviceGetTotalEnergyConsumption))

    def gpu_percent(self) -> int | None:
        """Return the share of time with a kernel running, over the driver's last period."""
        return self._read(_busy_percent)

    def _read(self, call: Callable[[object], T]) -> T | None:
        if self._handle is None:
            return None
        try:
            return call(self._handle)
        except pynvml.NVMLError as error:
            if error.value in _LOST:
                # Asking a lost card again can block for seconds in some drivers.
                self._handle = None
                self.problem = str(error)
            return None


class _NoMemoryV2Error(Exception):
    """The driver is older than the second version of the memory struct."""


def _start() -> str | None:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return _WHY_NOT.get(error.value, f"NVML does not start: {error}")
    return None


def _describe(index: int) -> Gpu | None:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = pynvml.nvmlDeviceGetUUID(handle)
    except pynvml.NVMLError:
        return None
    mig = _or_none(pynvml.nvmlDeviceGetMigMode, handle)
    return Gpu(
        index=index,
        uuid=uuid,
        name=_or_none(pynvml.nvmlDeviceGetName, handle),
        memory_total_bytes=_or_none(_total, handle),
        driver_version=_or_none(pynvml.nvmlSystemGetDriverVersion),
        cuda_driver_version=_or_none(_cuda_version),
        process_memory=_process_memory(handle),
        energy_counter=bool(_or_none(pynvml.nvmlDeviceGetTotalEnergyConsumption, handle)),
        mig=mig is not None and mig[0] == pynvml.NVML_DEVICE_MIG_ENABLE,
        power=bool(_or_none(pynvml.nvmlDeviceGetPowerUsage, handle)),
    )


def _process_memory(handle: object) -> str:
    try:
        listed = _compute_processes(handle)
    except pynvml.NVMLError as error:
        return f"the driver does not list the card's processes ({error})"
    if not listed:
        return NOT_SEEN
    if any(used for _, used in listed):
        return AVAILABLE
    if all(used is None for _, used in listed):
        return "the driver does not tell it"
    return "0 for every process, as in some containers"


def _compute_processes(handle: object) -> list[tuple[int, int | None]]:
    try:
        listed = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
    except pynvml.NVMLError_FunctionNotFound:
        listed = pynvml.nvmlDeviceGetComputeRunningProcesses_v2(handle)
    return [(process.pid, process.usedGpuMemory) for process in listed]


def _used_v2(handle: object) -> int:
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except (pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_ArgumentVersionMismatch):
        raise _NoMemoryV2Error from None
    return int(memory.used)


def _used_v1(handle: object) -> int:
    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)


def _total(handle: object) -> int:
    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)


def _busy_percent(handle: object) -> int:
    return int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)


def _cuda_version() -> str:
    version = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    return f"{version // 1000}.{version % 1000 // 10}"


def _thousandth(value: int | None) -> float | None:
    # A card that answers draws power: 0 is how virtual cards say that they do not know.
    return value / 1000 if value else None


def _or_none(call: Callable[..., T], *arguments: object) -> T | None:
    try:
        return call(*arguments)
    except pynvml.NVMLError:
        return None
