"""The best rates a device reaches, as a yardstick for a step's work."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from time import monotonic

import torch
from torch import Tensor

from kdbench.common.errors import first_line
from kdbench.spec.settings import Precision
from kdbench.worker.events import Events
from kdbench.worker.probes.clock import step_clock
from kdbench.worker.training.precision import set_precision

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Sides of square products: the larger, the closer to the device's rate, within memory and time.
_SIDES = (256, 512, 1024, 2048, 4096, 8192, 16384)
# Short compared with any cell, and enough to find the best side.
_SECONDS = 0.3
_FEWEST = 3
# Other load and a changing clock only slow a try down, so a rate is steady once the best few tries
# agree. The search takes no longer than this.
_AGREE = 0.03
_AT_LEAST_SECONDS, _AT_MOST_SECONDS = 0.2, 2.0
# Far larger than a processor's caches, so that a copy goes through memory...
_HOST_COPY_BYTES = 128 * 2**20
_DEVICE_COPY_BYTES = 2**30
# ...and at most this fraction of a GPU's free memory.
_FREE_PART = 8


def measure_rates(precision: Precision, device: torch.device, events: Events) -> None:
    """Report the device's rates as an event; a failure is only noted."""
    try:
        matmul, copy = matmul_rate(precision, device), copy_rate(device)
    except (RuntimeError, MemoryError) as error:
        problem = first_line(error, type(error).__name__)
        events.note(f"the device's rates could not be measured: {problem}")
        return
    events.emit(
        "rates",
        matmul_flops_per_second=matmul.best,
        copy_bytes_per_second=copy.best,
        rates_steady=matmul.steady and copy.steady,
    )


@dataclass(frozen=True)
class Rate:
    """The best rate per second, and whether the best tries agreed."""

    best: float
    steady: bool


def matmul_rate(precision: Precision, device: torch.device) -> Rate:
    """Measure the floating-point operations per second of the best square matrix product.

    A product of two n x n matrices is 2 n^3 operations. This sets the process's float32 mode to the
    precision's, and leaves its number of threads.
    """
    set_precision(precision, device)
    dtype = _DTYPES.get(precision, torch.float32)
    best, chosen, started = 0.0, None, monotonic()
    for side in _SIDES:
        a, b, out = (_fitting(device, (side, side), dtype) for _ in range(3))
        if a is None or b is None or out is None:
            break
        product = partial(torch.mm, a, b, out=out)
        seconds = min(_tries(product, device))
        if 2 * side**3 / seconds > best:
            best, chosen = 2 * side**3 / seconds, (side, product)
        # the next is eight times as long
        if monotonic() - started + _FEWEST * 8 * seconds > _SECONDS:
            break
    if chosen is None:
        raise RuntimeError("no memory is left to multiply in")
    side, work = chosen
    return _steady_rate(work, device, 2.0 * side**3, 2 * side**3 / best)


def copy_rate(device: torch.device) -> Rate:
    """Measure the bytes per second, read and written, of the best large copy on the device."""
    size = _HOST_COPY_BYTES if device.type == "cpu" else _DEVICE_COPY_BYTES
    source = target = None
    while source is None or target is None:
        source, target = (_fitting(device, (size,), torch.uint8) for _ in range(2))
        size //= 2
        if size < 2**20:
            raise RuntimeError("no memory is left to copy in")
    return _steady_rate(partial(target.copy_, source), device, 2.0 * source.nbytes)


def _steady_rate(
    work: Callable[[], object], device: torch.device, amount: float, *known: float
) -> Rate:
    """Repeat work of some operations or bytes until its best tries agree, or time is up.

    `known` are seconds of earlier tries.
    """
    started, tries = monotonic(), list(known)
    while True:
        tries = sorted([*tries, *_tries(work, device)])
        spent = monotonic() - started
        steady = tries[_FEWEST - 1] <= tries[0] * (1 + _AGREE)
        if (steady and spent >= _AT_LEAST_SECONDS) or spent >= _AT_MOST_SECONDS:
            return Rate(amount / tries[0], steady)


def _tries(work: Callable[[], object], device: torch.device) -> Iterator[float]:
    """Time work repeatedly, after a first run to warm up."""
    clock, started = step_clock(device), monotonic()
    work()
    count = 0
    while count < _FEWEST or monotonic() - started < _SECONDS / 4:
        clock.start()
        work()
        row = clock.stop()
        yield row["device_seconds"] or row["seconds"]
        count += 1


def _fitting(device: torch.device, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
    """Make a tensor of ones; None where a GPU has too little free memory."""
    if device.type == "cuda":
        wanted = torch.Size(shape).numel() * dtype.itemsize
        if wanted > torch.cuda.mem_get_info(device)[0] // _FREE_PART:
            return None
    return torch.ones(shape, dtype=dtype, device=device)
