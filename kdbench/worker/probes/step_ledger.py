"""A ledger for somebody else's training step, which says nothing of its parts.

A step of kdbench's own says which part begins. Here the parts are read off what happens: a module's
forward pass, autograd at work, an optimizer's step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_leaves

from kdbench.worker.probes.ledger import START, Ledger
from kdbench.worker.probes.tally import Event

# Before the step's first forward pass; and between its parts, after the first backward.
_DATA = "data"
_BETWEEN = "between"


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a step is made of, as far as it was told.

    Attributes:
        models: what is trained, by the name that its modules are to go under.
        teachers: what runs without being trained, likewise.
        optimizers: whose state counts although the step may not use it.
        inputs: tensors that count although the step may not use them.
    """

    models: Mapping[str, nn.Module]
    teachers: Mapping[str, nn.Module]
    optimizers: Sequence[Optimizer]
    inputs: Sequence[Tensor]

    def tensors(self) -> Iterator[Tensor]:
        """All that was there before the step, gradients left out."""
        for module in (*self.models.values(), *self.teachers.values()):
            yield from module.parameters()
            yield from module.buffers()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                yield from group["params"]
        yield from self.inputs

    def modules(self) -> Iterator[nn.Module]:
        """Every module, down to the last layer."""
        for root in (*self.models.values(), *self.teachers.values()):
            yield from root.modules()


class StepLedger(Ledger):
    """A ledger that finds out by itself which part of a step it is in.

    A storage that an operation is given and that nobody named was there before the step: it counts
    from the start.
    """

    def __init__(self, device: torch.device, parts: Parts) -> None:
        super().__init__(device)
        self._parts = parts
        trained = {id(part) for root in parts.models.values() for part in root.modules()}
        running = {id(part) for root in parts.teachers.values() for part in root.modules()}
        self._of_teacher = running - trained
        self._teachers_entered = self._optimizers_entered = 0

    def adopt_parts(self) -> None:
        """Count all that the step finds there, as far as it was told of it."""
        for name, module in self._parts.models.items():
            self.adopt_module(module, "parameters", prefix=name)
        for name, module in self._parts.teachers.items():
            self.adopt_module(module, "teacher", prefix=name)
        self.adopt(self._parts.inputs, "inputs")
        self.name_kept()

    def name_kept(self) -> None:
        """Name what a step leaves behind: gradients and the optimizers' states."""
        for module in self._parts.models.values():
            self.adopt_gradients(module)
        for optimizer in self._parts.optimizers:
            self.adopt(_gradients(optimizer), "gradients")
            self.adopt(_state(optimizer), "optimizer_state", "optimizer")

    def begin_optimizer(self, optimizer: Optimizer, *_: object) -> None:
        """Name gradients and state before an optimizer's own temporaries."""
        self._optimizers_entered += 1
        for tensor in (*_gradients(optimizer), *_state(optimizer)):
            self._meet(tensor)
        for module in self._parts.models.values():
            self.adopt_gradients(module)
        self.adopt(_gradients(optimizer), "gradients")
        self.adopt(_state(optimizer), "optimizer_state", "optimizer")

    def end_optimizer(self, optimizer: Optimizer, *_: object) -> None:
        """Name the state that an optimizer's first step made."""
        self._optimizers_entered -= 1
        self.adopt(_state(optimizer), "optimizer_state", "optimizer")

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Find the part that the operation is in, count what it is given, and run it."""
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.mark(self._find_part(given))
        for tensor in given:
            self._meet(tensor)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _find_part(self, given: Iterable[Tensor]) -> str:
        if self._optimizers_entered:
            return "optimizer"
        if torch._C._current_graph_task_id() != -1:  # as torch's own checkpointing asks
            return "backward"
        if self._teachers_entered:
            return "teacher"
        derives = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
        if self._module or derives or self._part == "teacher":
            return "forward"
        return _BETWEEN if self._part in ("backward", "optimizer") else self._part

    def _meet(self, tensor: Tensor) -> None:
        known = len(self._live)
        block = self._see(tensor)
        if block is None or len(self._live) == known:
            return
        self._events.pop()
        self._events.insert(0, Event(block, block.size, START))
        if isinstance(tensor, nn.Parameter):
            block.category = "parameters"
            return
        # Once there are gradients it may be anything: a gradient of before, an average of weights.
        block.category = "inputs" if self._part in (_DATA, "teacher", "forward") else "other"
        block.module = None

    def _enter_module(self, module: nn.Module, args: object) -> None:
        super()._enter_module(module, args)
        self._teachers_entered += id(module) in self._of_teacher

    def _leave_module(self, module: nn.Module, args: object, result: object) -> None:
        super()._leave_module(module, args, result)
        self._teachers_entered -= id(module) in self._of_teacher


def _state(optimizer: Optimizer) -> list[Tensor]:
    values = [value for state in optimizer.state.values() for value in tree_leaves(state)]
    return [value for value in values if isinstance(value, Tensor)]


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def is_compiled(module: nn.Module) -> bool:
    """Whether torch.compile runs it, by either way of asking for that."""
    return (
        getattr(module, "_compiled_call_impl", None) is not None or "_orig_mod" in module._modules
    )
