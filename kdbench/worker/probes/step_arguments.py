"""What a caller says of a step, read: modules, optimizers, tensors, a device."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from kdbench.common.errors import InputError
from kdbench.spec.step_memory import StepMemory
from kdbench.worker.probes.step_ledger import Parts
from kdbench.worker.probes.user_step import measure_step


def measure(
    step: Callable[[], object],
    *,
    model: object = None,
    teacher: object = None,
    optimizer: object = None,
    inputs: object = (),
    device: object = None,
    warmup: int = 1,
) -> StepMemory:
    """Measure a step as `kd_memory` is asked to; its arguments are checked here.

    Raises:
        InputError: an argument that none can be, or a step that cannot be measured.
    """
    __tracebackhide__ = True  # where a step raises, pytest shows the step alone
    if not callable(step):
        raise _wrong("step", "a function that runs one training step", step)
    if isinstance(warmup, bool) or not isinstance(warmup, int) or warmup < 0:
        raise _wrong("warmup", "a number of steps from 0", warmup)
    parts = Parts(
        models=_modules("model", model),
        teachers=_modules("teacher", teacher),
        optimizers=_optimizers(optimizer),
        inputs=[leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)],
    )
    return measure_step(step, parts, device=_device(device), warmup=warmup)


def _modules(key: str, given: object) -> dict[str, nn.Module]:
    named = given if isinstance(given, Mapping) else {} if given is None else {key: given}
    found = {}
    for name, module in named.items():
        if not isinstance(name, str) or not isinstance(module, nn.Module):
            raise _wrong(key, "a torch.nn.Module, or several in a dict by name", given)
        found[name] = module
    return found


def _optimizers(given: object) -> list[Optimizer]:
    several = given if isinstance(given, list | tuple) else [] if given is None else [given]
    found = []
    for one in several:
        if not isinstance(one, Optimizer):
            raise _wrong("optimizer", "a torch.optim.Optimizer, or a list of them", one)
        found.append(one)
    return found


def _device(given: object) -> torch.device | None:
    if given is None or isinstance(given, torch.device):
        return given
    try:
        return torch.device(str(given))
    except RuntimeError:
        raise _wrong("device", "a device of torch's, such as 'cuda:0'", given) from None


def _wrong(key: str, expected: str, found: object) -> InputError:
    shown = repr(found) if isinstance(found, str | int | float) else type(found).__name__
    return InputError(f"expected {expected}, found {shown}", where="kd_memory", key=key)
