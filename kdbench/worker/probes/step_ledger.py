"""A ledger for a user's training step, which does not mark its parts.

The parts are inferred: a module's forward pass, autograd at work, an optimizer's step.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)
from torch.utils._pytree import tree_leaves

from kdbench.worker.probes.allocations import START, Event
from kdbench.worker.probes.ledger import Ledger

# Before the step's first forward pass; and between its parts, after the first backward.
_DATA = "data"
_BETWEEN = "between"


@dataclass(frozen=True, kw_only=True)
class StepArguments:
    """What the caller says a step is made of; it all counts, whether the step uses it or not."""

    #: trained modules, by the name that their submodules get as a prefix
    models: Mapping[str, nn.Module]
    #: modules that run without being trained, likewise
    teachers: Mapping[str, nn.Module]
    optimizers: Sequence[Optimizer]
    inputs: Sequence[Tensor]

    def tensors(self) -> Iterator[Tensor]:
        """Yield all tensors that exist before the step, gradients left out."""
        for module in (*self.models.values(), *self.teachers.values()):
            yield from module.parameters()
            yield from module.buffers()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                yield from group["params"]
        yield from self.inputs

    def modules(self) -> Iterator[nn.Module]:
        """Yield every module, down to the last layer."""
        for root in (*self.models.values(), *self.teachers.values()):
            yield from root.modules()


class StepLedger(Ledger):
    """A ledger that infers which part of a step it is in.

    A storage that an operation reads and that nobody registered existed before the step: it counts
    from the start.
    """

    def __init__(self, device: torch.device, arguments: StepArguments) -> None:
        super().__init__(device)
        self._arguments = arguments
        trained = {id(part) for root in arguments.models.values() for part in root.modules()}
        running = {id(part) for root in arguments.teachers.values() for part in root.modules()}
        self._of_teacher = running - trained
        self._teachers_entered = self._optimizers_entered = 0

    def register_arguments(self) -> None:
        """Count all that exists before the step, as far as the caller named it."""
        for name, module in self._arguments.models.items():
            self.register_module(module, "parameters", prefix=name)
        for name, module in self._arguments.teachers.items():
            self.register_module(module, "teacher", prefix=name)
        self.register(self._arguments.inputs, "inputs")
        self.register_kept()

    def register_kept(self, *optimizers: Optimizer) -> None:
        """Name what a step leaves behind: gradients and the optimizers' states."""
        self.register_gradients(*self._arguments.models.values())
        for optimizer in optimizers or self._arguments.optimizers:
            self.register(_gradients(optimizer), "gradients")
            self.register(_state(optimizer), "optimizer_state", "optimizer")

    def __enter__(self) -> Self:
        before = register_optimizer_step_pre_hook(self._begin_optimizer)
        after = register_optimizer_step_post_hook(self._end_optimizer)
        self._hooks.callback(before.remove)
        self._hooks.callback(after.remove)
        return super().__enter__()

    def _begin_optimizer(self, optimizer: Optimizer, *_: object) -> None:
        """Name gradients and state before an optimizer's own temporaries."""
        self._optimizers_entered += 1
        for tensor in (*_gradients(optimizer), *_state(optimizer)):
            self._meet(tensor)
        self.register_kept(optimizer)

    def _end_optimizer(self, optimizer: Optimizer, *_: object) -> None:
        """Name the state that an optimizer's first step made."""
        self._optimizers_entered -= 1
        self.register(_state(optimizer), "optimizer_state", "optimizer")

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Find the operation's part, count what it reads, and run it."""
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        self.mark(self._find_part(given))
        for tensor in given:
            self._meet(tensor)
        return super().run(func, args, kwargs)

    def _find_part(self, given: Iterable[Tensor]) -> str:
        if self._optimizers_entered:
            return "optimizer"
        if torch._C._current_graph_task_id() != -1:  # as torch's own checkpointing asks
            return "backward"
        if self._teachers_entered:
            return "teacher"
        derives = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given)
        if self._modules or derives or self._part == "teacher":
            return "forward"
        return _BETWEEN if self._part in ("backward", "optimizer") else self._part

    def _meet(self, tensor: Tensor) -> None:
        """Count a tensor that an operation reads; an unknown one existed before the step."""
        known = len(self._live)
        block = self._track(tensor)
        if block is None or len(self._live) == known:
            return
        self.events.pop()
        self.events.insert(0, Event(block, block.size, START))
        if isinstance(tensor, nn.Parameter):
            block.category = "parameters"
            return
        # After the first backward it may be anything: an old gradient, an average of weights.
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
