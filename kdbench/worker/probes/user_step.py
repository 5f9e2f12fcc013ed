"""A user's training step, measured: a few times as it is, then once under the ledger.

The figures are those of an accounting step (`account.py`), obtained in the same way.
"""

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any

import torch

# Otherwise the first dispatch under a mode imports it in the middle of a step, and references to
# the importing frames keep the step's tensors alive.
import torch._dynamo
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from kdbench.common.errors import InputError
from kdbench.spec.step_memory import StepMemory
from kdbench.worker.probes.dispatch import no_collection
from kdbench.worker.probes.step_ledger import StepArguments, StepLedger
from kdbench.worker.probes.work import WorkCounter

_WHERE = "kd_memory"


def measure_step(
    step: Callable[[], object],
    *,
    model: object = None,
    teacher: object = None,
    optimizer: object = None,
    inputs: object = (),
    device: object = None,
    warmup: int = 1,
) -> StepMemory:
    """Measure a step as `kd_memory` does.

    It runs `warmup` times as it is, then once under the ledger; after one step there are gradients
    and optimizer state.

    Raises:
        InputError: an argument of the wrong kind, modules on several devices, a step that uses no
            memory there, or compiled code.
    """
    __tracebackhide__ = True  # where a step raises, pytest shows the step alone
    if not callable(step):
        raise _wrong("step", "a function that runs one training step", step)
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
        raise _wrong("warmup", "a number of steps from 0", warmup)
    arguments = StepArguments(
        models=_modules("model", model),
        teachers=_modules("teacher", teacher),
        optimizers=_optimizers(optimizer),
        inputs=[leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)],
    )
    where = _device(device) or _device_of(arguments)
    _refuse_compiled(any(map(_is_compiled, arguments.modules())))
    _empty_cache(where)
    for _ in range(warmup):
        step()
    ledger = StepLedger(where, arguments)
    try:
        return _account(step, ledger, where)
    finally:
        ledger.release()


def _account(step: Callable[[], object], ledger: StepLedger, device: torch.device) -> StepMemory:
    __tracebackhide__ = True
    work = WorkCounter()
    ledger.register_arguments()
    before = len(ledger.events)
    with no_collection(), _eagerly() as compiled, work, ledger:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)
        result = step()
    peak, reserved = _read_peaks(device)
    del result  # kept until here, as a training loop keeps its loss
    ledger.register_kept()
    _refuse_compiled(bool(compiled))
    if len(ledger.events) == before:
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
def _eagerly() -> Iterator[list[FrameType]]:
    """Have torch run compiled code eagerly; yields the calls of such code as they come.

    Under a ledger torch does so anyway, but for good: later steps of the process would be slower.
    """
    calls: list[FrameType] = []
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        if sys.getprofile() is None:  # another profiler could not be restored

            def look(frame: FrameType, event: str, _: object) -> None:
                if event == "call" and frame.f_code.co_name == "compile_wrapper":
                    calls.append(frame)

            sys.setprofile(look)
            stack.callback(sys.setprofile, None)
        yield calls


def _is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile runs it, in either way of asking for that."""
    return (
        getattr(module, "_compiled_call_impl", None) is not None or "_orig_mod" in module._modules
    )


def _refuse_compiled(found: bool) -> None:
    if found:
        problem = "no ledger sees into compiled code: torch would run the step without it"
        hint = "measure the step without torch.compile"
        raise InputError(problem, where=_WHERE, hint=hint)


def _empty_cache(device: torch.device) -> None:
    """Have CUDA's allocator release what earlier work reserved: it is not this step's."""
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


def _read_peaks(device: torch.device) -> tuple[int | None, int | None]:
    """Return the allocator's peaks, allocated and reserved; None where there is none."""
    if device.type != "cuda":
        return None, None
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)


def _modules(key: str, given: Any) -> dict[str, nn.Module]:
    named = given if isinstance(given, Mapping) else {} if given is None else {key: given}
    for name, module in named.items():
        if not isinstance(name, str) or not isinstance(module, nn.Module):
            raise _wrong(key, "a torch.nn.Module, or several in a dict by name", given)
    return dict(named)


def _optimizers(given: Any) -> list[Optimizer]:
    several = given if isinstance(given, list | tuple) else [] if given is None else [given]
    for one in several:
        if not isinstance(one, Optimizer):
            raise _wrong("optimizer", "a torch.optim.Optimizer, or a list of them", one)
    return list(several)


def _device(given: object) -> torch.device | None:
    if given is None:
        return None
    try:
        device = torch.device(str(given))
    except RuntimeError:
        raise _wrong("device", "a device of torch's, such as 'cuda:0'", given) from None
    if str(device) == "cuda":  # the card that it means now
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _device_of(arguments: StepArguments) -> torch.device:
    """Find the one device that is not the host; the host where there is none."""
    found = sorted({str(t.device) for t in arguments.tensors() if t.device.type != "cpu"})
    if len(found) > 1:
        problem = f"expected one device beside the CPU, found {', '.join(found)}"
        raise InputError(problem, where=_WHERE, hint="say which one counts with device=")
    return torch.device(found[0] if found else "cpu")


def _wrong(key: str, expected: str, found: object) -> InputError:
    value = repr(found) if isinstance(found, str | int | float) else type(found).__name__
    return InputError(f"expected {expected}, found {value}", where=_WHERE, key=key)
