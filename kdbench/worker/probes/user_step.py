"""Somebody else's training step, measured: a few times as it is, then once under the ledger.

The figures are those of an accounting step (`account.py`), and are got in the same way.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType

import torch

# The first dispatch under a mode imports it otherwise, in the middle of a step, and what it keeps
# of the frames that it was imported from keeps the step's tensors alive.
import torch._dynamo
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from kdbench.common.errors import InputError
from kdbench.spec.step_memory import StepMemory
from kdbench.worker.probes.step_ledger import Parts, StepLedger, is_compiled
from kdbench.worker.probes.work import WorkCounter

_WHERE = "kd_memory"


def measure_step(
    step: Callable[[], object], parts: Parts, *, device: torch.device | None, warmup: int
) -> StepMemory:
    """Run a step a few times as it is, then once under the ledger.

    Args:
        step: runs one training step.
        parts: what the step is made of.
        device: whose memory counts; None: where the parts are.
        warmup: steps before the measured one; after one there are gradients and optimizer state.

    Raises:
        InputError: parts on several cards, a step that leaves no trace, or compiled code.
    """
    __tracebackhide__ = True  # where a step raises, pytest shows the step alone
    device = _indexed(device) if device else _device_of(parts)
    _refuse_compiled(any(map(is_compiled, parts.modules())))
    _empty_cache(device)
    for _ in range(warmup):
        step()
    ledger = StepLedger(device, parts)
    try:
        return _account(step, ledger, device)
    finally:
        ledger.release()


def _account(step: Callable[[], object], ledger: StepLedger, device: torch.device) -> StepMemory:
    """Run the step under a ledger."""
    __tracebackhide__ = True
    work = WorkCounter()
    ledger.adopt_parts()
    there = len(ledger.events)
    with _collected(), _optimizers_watched(ledger), _eagerly() as compiled, work, ledger:
        _reset_peaks(device)
        result = step()
    peak, reserved = _read_peaks(device)
    del result  # held until here, as a training loop holds its loss
    ledger.name_kept()
    _refuse_compiled(bool(compiled))
    if len(ledger.events) == there:
        problem = f"the step used no memory on {device}: there is nothing to measure"
        raise InputError(problem, where=_WHERE, hint="if it runs elsewhere, say so with device=")
    return StepMemory(
        peak_bytes=ledger.peak_bytes() if peak is None else peak,
        source="ledger" if peak is None else "cuda-allocator",
        device=str(device),
        held={(share.category, share.module): share.size for share in ledger.shares()},
        flops=work.flops,
        operations=work.operations,
        bytes_moved=work.bytes_moved,
        reserved_bytes=reserved,
        torch_version=str(torch.__version__),  # a class of its own
        device_name=torch.cuda.get_device_name(device) if device.type == "cuda" else None,
    )


@contextmanager
def _optimizers_watched(ledger: StepLedger) -> Iterator[None]:
    """Tell the ledger when any optimizer steps."""
    before = register_optimizer_step_pre_hook(ledger.begin_optimizer)
    after = register_optimizer_step_post_hook(ledger.end_optimizer)
    try:
        yield
    finally:
        before.remove()
        after.remove()


@contextmanager
def _collected() -> Iterator[None]:
    """Collect garbage now and none until the end.

    What is in reference cycles goes when the interpreter pleases, and the peak with it; here it
    stays, so that the same step has the same peak.
    """
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _device_of(parts: Parts) -> torch.device:
    """Find the one device that is not the host; the host where there is none."""
    found = sorted({str(t.device) for t in parts.tensors() if t.device.type != "cpu"})
    if len(found) > 1:
        problem = f"expected one device beside the CPU, found {', '.join(found)}"
        raise InputError(problem, where=_WHERE, hint="say which one counts with device=")
    return torch.device(found[0] if found else "cpu")


def _indexed(device: torch.device) -> torch.device:
    """Name the card that `cuda` means now."""
    if str(device) == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _empty_cache(device: torch.device) -> None:
    """Have CUDA's allocator give back what earlier work reserved: it is none of this step's."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _reset_peaks(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)


def _read_peaks(device: torch.device) -> tuple[int | None, int | None]:
    """Return the allocator's peaks, allocated and reserved; None where there is none."""
    if device.type != "cuda":
        return None, None
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)


@contextmanager
def _eagerly() -> Iterator[list[FrameType]]:
    """Have torch run compiled code eagerly; yields the calls of it, as they come.

    Under a ledger torch does so anyway, but then for good: it gives up that code, and later steps
    of the same process would be slower.
    """
    calls: list[FrameType] = []
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:  # else there is none, and its import takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if sys.getprofile() is None:  # somebody else's profiler could not be put back

            def look(frame: FrameType, event: str, _: object) -> None:
                if event == "call" and frame.f_code.co_name == "compile_wrapper":
                    calls.append(frame)

            sys.setprofile(look)
            stack.callback(sys.setprofile, None)
        yield calls


def _refuse_compiled(found: bool) -> None:
    if found:
        problem = "no ledger sees into compiled code: torch would run the step without it"
        hint = "measure the step without torch.compile"
        raise InputError(problem, where=_WHERE, hint=hint)
