"""The ledger: every allocation of a step that passes through dispatch, and what it was for."""

import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from itertools import takewhile
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._pytree import tree_leaves

from kdbench.worker.probes import allocations
from kdbench.worker.probes.dispatch import OperationMode, storage_of

# Category of a storage by the part of the step that made it. Gradients of parameters and optimizer
# state are recognised afterwards, by who holds them.
_CATEGORIES = {
    "data": "inputs",
    "teacher": "teacher",
    "forward": "activations",
    "backward": "workspace",
    "optimizer": "workspace",
}


class Ledger(OperationMode):
    """Records allocations and frees on one device while it is entered.

    A storage counts from the operation that first returned it until its last reference goes,
    with its exact bytes: no allocator rounds them here. What kernels allocate and free within one
    operation lies below dispatch and is not seen.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        #: allocations and frees so far, in order
        self.events: list[allocations.Event] = []
        self._device = device.type
        self._part = allocations.START
        self._modules: list[str] = []
        self._names: dict[int, str] = {}
        self._live: dict[int, allocations.Block] = {}
        self._finalizers: dict[int, weakref.finalize[Any, Any]] = {}
        self._closed = False
        self._hooks = ExitStack()

    def mark(self, part: str) -> None:
        """Begin a part of the step: data, teacher, forward, backward or optimizer."""
        self._part = part

    def register(self, tensors: Iterable[Tensor], category: str, module: str | None = None) -> None:
        """Count tensors that exist already, or name those that were seen being made.

        After the step it only names: what bypassed dispatch shows as unattributed.
        """
        for tensor in tensors:
            block = self._track(tensor)
            if block is not None:
                block.category, block.module = category, module or block.module

    def register_module(self, root: nn.Module, category: str, prefix: str) -> None:
        """Count a module's parameters and buffers, and learn the names of its submodules."""
        for name, module in root.named_modules():
            dotted = f"{prefix}.{name}" if name else prefix
            self._names[id(module)] = dotted
            tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
            self.register(tensors, category, dotted)

    def register_gradients(self, *roots: nn.Module) -> None:
        """Name the gradients that the modules' parameters have now."""
        for module in (part for root in roots for part in root.modules()):
            for parameter in module.parameters(recurse=False):
                if parameter.grad is not None:
                    self.register([parameter.grad], "gradients", self._names.get(id(module)))

    def __enter__(self) -> Self:
        if self._part == allocations.START:  # a caller that marks nothing has one part
            self._part = "data"
        before = hooks.register_module_forward_pre_hook(self._enter_module)
        after = hooks.register_module_forward_hook(self._leave_module, always_call=True)
        self._hooks.callback(before.remove)
        self._hooks.callback(after.remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *reason: object) -> None:
        super().__exit__(*reason)  # type: ignore[no-untyped-call]
        self._closed = True
        self._hooks.close()

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation and count the storages that it returns."""
        result = func(*args, **kwargs)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._track(leaf)
        return result

    def peak_bytes(self) -> int:
        """Return the most bytes that were live at once."""
        return allocations.peak_of(self.events)[1]

    def shares(self) -> list[allocations.Share]:
        """Split the live bytes at the peak by category and module, largest first."""
        return allocations.shares_of(self.events[: allocations.peak_of(self.events)[0]])

    def timeline(self) -> allocations.Columns:
        """Return the live bytes by category over the step, as `allocations.timeline` does."""
        start = sum(
            1 for _ in takewhile(lambda event: event.part == allocations.START, self.events)
        )
        return allocations.timeline(self.events[:start], self.events[start:])

    def release(self) -> None:
        """Stop watching storages that outlive the step; they would keep the ledger alive."""
        for finalizer in self._finalizers.values():
            finalizer.detach()
        self._finalizers.clear()
        self._live.clear()

    def _track(self, tensor: Tensor) -> allocations.Block | None:
        storage = storage_of(tensor)
        if storage is None:
            return None
        key, size = storage._cdata, storage.nbytes()
        block = self._live.get(key)
        if block is None:
            # Only new storages are asked for their device: fake tensors answer slowly.
            if not size or self._closed or tensor.device.type != self._device:
                return None
            block = allocations.Block(
                size, self._category(), self._modules[-1] if self._modules else None
            )
            self._live[key] = block
            self.events.append(allocations.Event(block, size, self._part))
            # torch keeps one Python object per storage as long as the storage lives, so this
            # fires exactly when the memory is freed.
            finalizer = self._finalizers[key] = weakref.finalize(storage, self._free, key, block)
            finalizer.atexit = False
        elif size != block.size and not self._closed:  # resized in place
            self.events.append(allocations.Event(block, size - block.size, self._part))
            block.size = size
        return block

    def _category(self) -> str:
        # A module's forward pass during backward is a checkpoint's: its results are kept for the
        # gradients, as the first time.
        recomputed = self._part == "backward" and bool(self._modules)
        return "activations" if recomputed else _CATEGORIES.get(self._part, "other")

    def _free(self, key: int, block: allocations.Block) -> None:
        if self._live.get(key) is block:
            del self._live[key], self._finalizers[key]
        if not self._closed:
            self.events.append(allocations.Event(block, -block.size, self._part))

    def _enter_module(self, module: nn.Module, _args: object) -> None:
        self._modules.append(self._names.get(id(module), type(module).__name__))

    def _leave_module(self, _module: nn.Module, _args: object, _result: object) -> None:
        self._modules.pop()
