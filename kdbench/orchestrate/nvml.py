"""What NVML tells of the cards, and their MIG instances; what is not told is None.

A driver may be absent, old, half updated, or lose a card while it runs. None of that raises here:
a measurement goes on without the figure, and the figure is null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeVar

import pynvml

from kdbench.orchestrate.card import GpuReader, compute_processes

T = TypeVar("T")

AVAILABLE = "available"
NOT_LISTED = "the driver does not list the card's processes"
NOT_SEEN = "not known until a process uses the card"

_WHY_NOT = {
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no NVIDIA driver: libnvidia-ml.so.1 cannot be loaded",
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "the NVIDIA driver is installed, but not loaded",
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: "the NVIDIA library and kernel module are of "
    "different versions, as after an update: restart the machine, or reload the module",
    pynvml.NVML_ERROR_NO_PERMISSION: "no permission to talk to the NVIDIA driver",
}


@dataclass(frozen=True)
class Gpu:
    """One card, or one MIG instance of a card, and what its driver is able to tell of it."""

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
    #: whether the card's clock, temperature and reasons for throttling are told
    clock: bool = False
    temperature: bool = False
    throttling: bool = False
    #: the partitions of a card in MIG mode, each of which CUDA shows as a device of its own
    instances: tuple[Gpu, ...] = ()
    #: of an instance: the UUID of its card
    part_of: str | None = None


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
        """Return a reader for one card or instance; it reads None where there is no such card."""
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


def why_lost(uuid: str) -> str | None:
    """Say why a card that was there does not answer any more; None: it answers."""
    with open_nvml() as nvml:
        if nvml.problem is not None:
            return f"the driver is gone: {nvml.problem}"
        reader = nvml.reader(uuid)
        reader.device_bytes()
        if reader.problem is not None:
            return f"the card is gone: {reader.problem}"
    return None


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
    mode = _or_none(pynvml.nvmlDeviceGetMigMode, handle)
    mig = mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    reader = GpuReader(uuid)
    whole = Gpu(
        index=index,
        uuid=uuid,
        name=_or_none(pynvml.nvmlDeviceGetName, handle),
        memory_total_bytes=_or_none(_total, handle),
        driver_version=_or_none(pynvml.nvmlSystemGetDriverVersion),
        cuda_driver_version=_or_none(_cuda_version),
        process_memory=_process_memory(handle),
        energy_counter=reader.energy_joules() is not None,
        mig=mig,
        power=reader.power_watts() is not None,
        clock=reader.sm_mhz() is not None,
        temperature=reader.celsius() is not None,
        throttling=reader.throttle_bits() is not None,
    )
    return replace(whole, instances=tuple(_instances(whole, handle))) if mig else whole


def _instances(card: Gpu, handle: object) -> Iterator[Gpu]:
    for place in range(_or_none(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        # Most places are empty: how many instances a card has is for its owner to say.
        instance = _or_none(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
        uuid = instance and _or_none(pynvml.nvmlDeviceGetUUID, instance)
        if uuid:
            yield replace(
                card,
                uuid=uuid,
                name=_or_none(pynvml.nvmlDeviceGetName, instance) or card.name,
                memory_total_bytes=_or_none(_total, instance),
                process_memory=_process_memory(instance),
                energy_counter=False,
                power=False,
                part_of=card.uuid,
            )


def _process_memory(handle: object) -> str:
    try:
        listed = compute_processes(handle)
    except pynvml.NVMLError as error:
        return f"{NOT_LISTED} ({error})"
    if not listed:
        return NOT_SEEN
    if any(used for _, used in listed):
        return AVAILABLE
    if all(used is None for _, used in listed):
        return "the driver does not tell it"
    return "0 for every process, as in some containers"


def _total(handle: object) -> int:
    return int(pynvml.nvmlDeviceGetMemoryInfo(handle).total)


def _cuda_version() -> str:
    version = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    return f"{version // 1000}.{version % 1000 // 10}"


def _or_none(call: Callable[..., T], *arguments: object) -> T | None:
    try:
        return call(*arguments)
    except pynvml.NVMLError:
        return None
