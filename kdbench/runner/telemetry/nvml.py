"""What NVML tells of the cards, and their MIG instances; what is not reported is None.

A driver may be absent, old, half updated, or lose a card while it runs. None of that raises here:
a measurement goes on without the figure, and the figure is null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeVar

from kdbench.runner.telemetry.gpu import GpuReader, compute_processes, total_bytes
from kdbench.runner.telemetry.nvml_binding import binding_problem, pynvml, text_of
from kdbench.runner.telemetry.nvml_errors import (
    DRIVER_NOT_LOADED,
    LIBRARY_NOT_FOUND,
    NOT_SUPPORTED,
    Fault,
    fault,
)

T = TypeVar("T")

AVAILABLE = "available"
NOT_LISTED = "the driver does not list the card's processes"
NOT_SEEN = "not known until a process uses the card"

NO_OWN_MEMORY = "not reported, as by a card that shares the host's (GB10, Jetson)"

# What says that no card can be used here, whoever is asked.
_NO_DRIVER = (LIBRARY_NOT_FOUND, DRIVER_NOT_LOADED)


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
    #: "available", or why the used memory of the card or instance is not
    device_memory: str = AVAILABLE
    #: whether the card's clock, temperature and reasons for throttling are told
    clock: bool = False
    temperature: bool = False
    throttling: bool = False
    #: the partitions of a card in MIG mode, each of which CUDA shows as a device of its own
    instances: tuple[Gpu, ...] = ()
    #: of an instance: the UUID of its card
    part_of: str | None = None


class Nvml:
    """NVML as `open_nvml` found it.

    `problem` says why it cannot be asked (None: it can), `remedy` what to do about that; with
    `no_driver` no driver runs here, so that no card can be used at all.
    """

    def __init__(
        self, problem: str | None = None, remedy: str | None = None, *, no_driver: bool = False
    ) -> None:
        self.problem, self.remedy, self.no_driver = problem, remedy, no_driver

    def count(self) -> int:
        """Return how many cards the driver knows, also those that no longer answer."""
        return 0 if self.problem else _or_none(pynvml.nvmlDeviceGetCount) or 0

    def gpus(self) -> list[Gpu]:
        """Return the cards that answer, in NVML's order (that of the PCI bus)."""
        return [gpu for gpu in self._cards() if isinstance(gpu, Gpu)]

    def silent(self) -> list[tuple[int, Fault]]:
        """Return the index of each card that cannot be asked, and why."""
        return [(i, why) for i, why in enumerate(self._cards()) if not isinstance(why, Gpu)]

    def why_none(self) -> str | None:
        """Say why no card answers, in words; None: there is none, or one does."""
        if self.problem is not None:
            return self.problem
        silent = self.silent()
        if not silent or len(silent) < self.count():
            return None
        reasons = ", ".join(dict.fromkeys(str(why) for _, why in silent))
        return f"none of the {len(silent)} NVIDIA cards can be used: {reasons}"

    def reader(self, uuid: str) -> GpuReader:
        """Return a reader for one card or instance; it reads None where there is no such card."""
        return GpuReader(uuid, self.problem)

    def _cards(self) -> list[Gpu | Fault]:
        return [_describe(index) for index in range(self.count())]


@contextmanager
def open_nvml() -> Iterator[Nvml]:
    """Open NVML. Never raises for a driver that is absent or broken: see `Nvml.problem`."""
    nvml = _start()
    try:
        yield nvml
    finally:
        if nvml.problem is None:
            with suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()


def why_lost(uuid: str) -> str | None:
    """Say why a card that was there does not answer any more; None: it answers."""
    with open_nvml() as nvml:
        if nvml.problem is not None:
            return f"the driver is gone: {nvml.problem}"
        reader = nvml.reader(uuid)
        reader.device_bytes()
        return reader.problem and f"the card is gone: {reader.problem}"


def _start() -> Nvml:
    broken = binding_problem()
    if broken is not None:
        return Nvml(f"NVML cannot be asked: {broken[0]}", broken[1])
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        why, known = fault(error.value), error.value in _NO_DRIVER
        # these two say all: that NVML does not start goes without saying
        problem = why.meaning if known else f"NVML does not start: {why}"
        return Nvml(problem, why.remedy, no_driver=known)
    return Nvml()


def _describe(index: int) -> Gpu | Fault:
    try:
        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        uuid = text_of(pynvml.nvmlDeviceGetUUID, handle)
    except pynvml.NVMLError as error:
        return fault(error.value)
    if uuid is None:
        return fault(NOT_SUPPORTED)
    mode = _or_none(pynvml.nvmlDeviceGetMigMode, handle)
    mig = mode is not None and mode[0] == pynvml.NVML_DEVICE_MIG_ENABLE
    # A container may be given an instance and not be told that the card has any.
    asked = mig or mode is None
    reader = GpuReader(uuid)
    whole = Gpu(
        index=index,
        uuid=uuid,
        name=_or_none(text_of, pynvml.nvmlDeviceGetName, handle),
        memory_total_bytes=_or_none(total_bytes, handle),
        driver_version=_or_none(text_of, pynvml.nvmlSystemGetDriverVersion),
        cuda_driver_version=_or_none(_cuda_version),
        process_memory=_process_memory(handle),
        energy_counter=reader.energy_joules() is not None,
        mig=mig,
        power=reader.power_watts() is not None,
        device_memory=_device_memory(reader, handle),
        clock=reader.sm_mhz() is not None,
        temperature=reader.celsius() is not None,
        throttling=reader.throttle_bits() is not None,
    )
    instances = tuple(_instances(whole, handle)) if asked else ()
    return replace(whole, instances=instances, mig=mig or bool(instances))


def _instances(card: Gpu, handle: object) -> Iterator[Gpu]:
    for place in range(_or_none(pynvml.nvmlDeviceGetMaxMigDeviceCount, handle) or 0):
        # Most places are empty: how many instances a card has is for its owner to say.
        instance = _or_none(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, handle, place)
        uuid = instance and _or_none(text_of, pynvml.nvmlDeviceGetUUID, instance)
        if uuid:
            yield replace(
                card,
                uuid=uuid,
                name=_or_none(text_of, pynvml.nvmlDeviceGetName, instance) or card.name,
                memory_total_bytes=_or_none(total_bytes, instance),
                process_memory=_process_memory(instance),
                device_memory=_device_memory(GpuReader(uuid), instance),
                energy_counter=False,
                power=False,
                part_of=card.uuid,
            )


def _process_memory(handle: object) -> str:
    try:
        listed = compute_processes(handle)
    except pynvml.NVMLError as error:
        return f"{NOT_LISTED} ({fault(error.value).name})"
    if not listed:
        return NOT_SEEN
    if any(used for _, used in listed):
        return AVAILABLE
    if all(used is None for _, used in listed):
        return "the driver does not tell it"
    return "0 for every process, as in some containers"


def _device_memory(reader: GpuReader, handle: object) -> str:
    if reader.device_bytes() is not None:
        return AVAILABLE
    try:
        total_bytes(handle)
    except pynvml.NVMLError as error:
        why = fault(error.value)
        return NO_OWN_MEMORY if error.value == NOT_SUPPORTED else f"not reported: {why}"
    return NO_OWN_MEMORY


def _cuda_version() -> str:
    version = pynvml.nvmlSystemGetCudaDriverVersion_v2()
    return f"{version // 1000}.{version % 1000 // 10}"


def _or_none(call: Callable[..., T], *arguments: object) -> T | None:
    try:
        return call(*arguments)
    except pynvml.NVMLError:
        return None
