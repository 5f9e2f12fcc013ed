"""Reads one card, or one MIG instance of it, through NVML: what is not reported is None.

`nvml` beside this opens NVML; nothing here raises for a driver that is old, or for a card that is
lost half-way.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from kdbench.runner.telemetry.nvml_binding import pynvml
from kdbench.runner.telemetry.nvml_errors import GPU_IS_LOST, GPU_NOT_FOUND, fault

T = TypeVar("T")

#: process ids, as the driver numbers them, with the bytes that each holds where that is told
Listed = list[tuple[int, int | None]]

_LOST = frozenset((GPU_IS_LOST, GPU_NOT_FOUND))
# No card has so many bytes: NVML writes -1 for what it does not know.
_UNKNOWN_BYTES = 2**63

# nvml.h: the bits of nvmlClocksEventReasons. Those of an idle card, and of clocks that somebody
# set, are no throttling: the card does what it was told to.
_THROTTLING = {
    0x4: "power cap",
    0x8: "hardware slowdown",
    0x10: "held to another card's clocks",
    0x20: "heat",
    0x40: "heat (hardware)",
    0x80: "external power brake",
    0x200: "board limit",
    0x400: "reliability",
}


def throttle_words(bits: int) -> list[str]:
    """Name the reasons among NVML's bits for which a card slows down against what it was told."""
    return [words for bit, words in _THROTTLING.items() if bits & bit]


class GpuReader:
    """Reads one card or MIG instance, addressed by UUID: indices change with what CUDA is told.

    A figure that is not reported is None. Power, energy and utilisation are the whole card's and
    are never given for an instance; clock, temperature and throttling are the card's too, but
    hold for each of its instances. After the card is lost all are None, and `problem` says so, as
    it does where NVML cannot be asked at all. NVML must stay open meanwhile.
    """

    def __init__(self, uuid: str, problem: str | None = None) -> None:
        self.problem = problem
        self.lost = False  #: it answered, and then no longer did
        self._has_memory_v2 = True
        self._handle: object = None
        self._whole: object = None  # of the whole card: None on an instance
        # of what clocks and heat are asked of: the card, whether or not an instance is read
        self._board: object = None
        self._utilised_us = 0
        if problem is not None:
            return
        try:
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        except pynvml.NVMLError as error:
            self.problem = f"card {uuid}: {fault(error.value).name}"
            return
        if uuid.startswith("MIG-"):
            self._board = self._ask(
                self._handle, pynvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle
            )
        else:
            self._whole = self._board = self._handle

    def device_bytes(self) -> int | None:
        """Return the used memory of the card or instance, all its processes together, in bytes.

        The driver's own reserve is not in it, except on drivers too old to tell it apart. None for
        a card that has no memory of its own, but shares the host's.
        """
        if self._has_memory_v2:
            try:
                return self._ask(self._handle, used_v2)
            except NoMemoryV2Error:
                # For good: the two versions count differently, and a series must not mix them.
                self._has_memory_v2 = False
        return self._ask(self._handle, lambda h: _used(pynvml.nvmlDeviceGetMemoryInfo(h)))

    def processes(self) -> Listed | None:
        """Return the processes that have the card open to compute, and the bytes each holds."""
        return self._ask(self._handle, compute_processes)

    def computing(self) -> set[int] | None:
        """Return the processes that kept the card's cores busy since the last call.

        None where that is not reported. Nothing at all told is no answer either: some drivers and
        containers list nobody, and beside a training somebody computes.
        """
        samples = self._ask(
            self._whole, lambda h: pynvml.nvmlDeviceGetProcessUtilization(h, self._utilised_us)
        )
        # Drivers are known to list rubbish for processes that have just ended.
        valid = [s for s in samples or () if s.pid and 0 <= s.smUtil <= 100]
        self._utilised_us = max((s.timeStamp for s in valid), default=self._utilised_us)
        return {s.pid for s in valid if s.smUtil} or None

    def power_watts(self) -> float | None:
        """Return the power draw; recent cards average it over a second, in their driver."""
        return self._ask(self._whole, lambda h: _thousandth(pynvml.nvmlDeviceGetPowerUsage(h)))

    def energy_joules(self) -> float | None:
        """Return the card's energy counter, which starts when the driver is loaded."""
        return self._ask(
            self._whole, lambda h: _thousandth(pynvml.nvmlDeviceGetTotalEnergyConsumption(h))
        )

    def gpu_percent(self) -> int | None:
        """Return the share of time with a kernel running, over the driver's last period."""
        return self._ask(self._whole, lambda h: int(pynvml.nvmlDeviceGetUtilizationRates(h).gpu))

    def sm_mhz(self) -> float | None:
        """Return the clock of the card's cores; a card that runs has one, so 0 is not reported."""
        return self._ask(
            self._board,
            lambda h: float(pynvml.nvmlDeviceGetClockInfo(h, pynvml.NVML_CLOCK_SM)) or None,
        )

    def celsius(self) -> float | None:
        """Return the card's temperature."""
        return self._ask(
            self._board,
            lambda h: float(pynvml.nvmlDeviceGetTemperature(h, pynvml.NVML_TEMPERATURE_GPU)),
        )

    def throttle_bits(self) -> int | None:
        """Return the bits of the reasons for which its clocks are lowered; see `throttle_words`."""
        return self._ask(self._board, _event_reasons)

    def _ask(self, handle: object, call: Callable[[object], T]) -> T | None:
        if handle is None:
            return None
        try:
            return call(handle)
        except pynvml.NVMLError as error:
            if error.value in _LOST:
                # Asking a lost card again can block for seconds in some drivers.
                self._handle = self._whole = self._board = None
                self.lost = True
                self.problem = f"the card stopped answering: {fault(error.value).name}"
            return None


class NoMemoryV2Error(Exception):
    """The driver is older than the second version of the memory struct."""


def compute_processes(handle: object) -> Listed:
    """List a card's or an instance's processes; raises pynvml.NVMLError where it is not told."""
    try:
        listed = pynvml.nvmlDeviceGetComputeRunningProcesses_v3(handle)
    except pynvml.NVMLError_FunctionNotFound:
        listed = pynvml.nvmlDeviceGetComputeRunningProcesses_v2(handle)
    return [(process.pid, process.usedGpuMemory) for process in listed]


def total_bytes(handle: object) -> int | None:
    """Return the card's memory; None where it has none of its own. Raises pynvml.NVMLError."""
    return _bytes(pynvml.nvmlDeviceGetMemoryInfo(handle).total) or None


def used_v2(handle: object) -> int | None:
    """Return the used memory, the driver's reserve left out; raises where the struct is unknown."""
    try:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except (pynvml.NVMLError_FunctionNotFound, pynvml.NVMLError_ArgumentVersionMismatch):
        raise NoMemoryV2Error from None
    return _used(memory)


def _used(memory: Any) -> int | None:  # noqa: ANN401 - either version of the struct
    # Of a total of 0 nothing is used either: that is how some say that they have none of their own.
    return _bytes(memory.used) if _bytes(memory.total) else None


def _bytes(value: int) -> int | None:
    return int(value) if value < _UNKNOWN_BYTES else None


def _event_reasons(handle: object) -> int:
    try:
        return int(pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    except pynvml.NVMLError_FunctionNotFound:  # its name until driver 535
        return int(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))


def _thousandth(value: int) -> float | None:
    # A card that answers draws power: 0 is how virtual cards say that they do not know.
    return value / 1000 if value else None
