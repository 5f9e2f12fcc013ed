"""The ledger: every allocation of a step that passes through dispatch, and what it was for."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdbench.worker.probes.tally import Block, Change, Event, Share, changes_of, peak_of, shares_of

# What comes before the step's first part; what is adopted then is live all the time until it goes.
START = "start"

# What a storage is for, by the part of the step that made it. Gradients of parameters and the
# optimizer's state are told apart afterwards, by who holds them.
_BORN = {
    "data": "inputs",
    "teacher": "teacher",
    "forward": "activations",
    "backward": "workspace",
    "optimizer": "workspace",
}


class Ledger(TorchDispatchMode):
    """Records allocations and frees on one device while it is entered.

    A storage counts from the operation that first returned it until its last reference goes,
    with its exact bytes: no allocator rounds them here. What kernels take and give back within
    one operation lies below dispatch and is not seen.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device = device.type
        self._part = START
        self._module: list[str] = []
        self._names: dict[int, str] = {}
        self._live: dict[int, Block] = {}
        self._events: list[Event] = []
        self._watches: dict[int, weakref.finalize[Any, Any]] = {}
        self._over = False
        self._hooks = ExitStack()

    def mark(self, part: str) -> None:
        """Say which part of the step begins: data, teacher, forward, backward, optimizer."""
        self._part = part

    def adopt(self, tensors: Iterable[Tensor], category: str, module: str | None = None) -> None:
        """Count tensors that exist already, or name those that were seen being made.

        After the step it only names: what went past dispatch unseen shows as unattributed.
        """
        for tensor in tensors:
            block = self._see(tensor)
            if block is not None:
                block.category, block.module = category, module or block.module

    def adopt_module(self, root: nn.Module, category: str, prefix: str) -> None:
        """Count a module's parameters and buffers, and learn the names of its parts."""
        for name, part in root.named_modules():
            dotted = f"{prefix}.{name}" if name else prefix
            self._names[id(part)] = dotted
            held = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
            self.adopt(held, category, dotted)

    def adopt_gradients(self, root: nn.Module) -> None:
        """Name the gradients that the module's parameters hold now."""
        for part in root.modules():
            for parameter in part.parameters(recurse=False):
                if parameter.grad is not None:
                    self.adopt([parameter.grad], "gradients", self._names.get(id(part)))

    def __enter__(self) -> Self:
        """Watch dispatch, and the modules' forward passes."""
        if self._part == START:  # whoever marks nothing has one part
            self._part = "data"
        before = hooks.register_module_forward_pre_hook(self._enter_module)
        after = hooks.register_module_forward_hook(self._leave_module, always_call=True)
        self._hooks.callback(before.remove)
        self._hooks.callback(after.remove)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *reason: object) -> None:
        """Stop watching: what is freed from now on is no part of the step, but names still are."""
        super().__exit__(*reason)  # type: ignore[no-untyped-call]
        self._over = True
        self._hooks.close()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Any = (),
        kwargs: Any = None,
    ) -> Any:
        """Run the operation and count the storages that it returns."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._see(leaf)
        return result

    @property
    def events(self) -> list[Event]:
        """What came and went so far, in order."""
        return self._events

    def changes(self) -> list[Change]:
        """Every event in order, each storage under the category that it had in the end."""
        return changes_of(self._events)

    def peak_bytes(self) -> int:
        """Most bytes that were live at once."""
        return peak_of(self._events)[1]

    def shares(self) -> list[Share]:
        """Split the live bytes at the peak by category and module, largest first."""
        return shares_of(self._events[: peak_of(self._events)[0]])

    def release(self) -> None:
        """Let go of storages that outlive the step, which else keep the ledger alive."""
        for watch in self._watches.values():
            watch.detach()
        self._watches.clear()
        self._live.clear()

    def _see(self, tensor: Tensor) -> Block | None:
        try:
            storage = tensor.untyped_storage()
        except (NotImplementedError, RuntimeError):  # sparse and the like have none
            return None
        key, size = storage._cdata, storage.nbytes()
        block = self._live.get(key)
        if block is None:
            # asked of new storages alone: a stand-in of a prediction is slow to tell its device
            if not size or self._over or tensor.device.type != self._device:
                return None
            module = self._module[-1] if self._module else None
            block = Block(size, self._category(), module)
            self._live[key] = block
            self._events.append(Event(block, size, self._part))
            # torch keeps one Python object per storage as long as the storage lives, so this
            # fires when the memory is given back, and not before.
            watch = self._watches[key] = weakref.finalize(storage, self._free, key, block)
            watch.atexit = False
        elif size != block.size and not self._over:  # resized in place
            self._events.append(Event(block, size - block.size, self._part))
            block.size = size
        return block

    def _category(self) -> str:
        # A module's forward pass within backward is a checkpoint's: what it makes is kept for the
        # gradients, as the first time.
        recomputed = self._part == "backward" and bool(self._module)
        return "activations" if recomputed else _BORN.get(self._part, "other")

    def _free(self, key: int, block: Block) -> None:
        if self._live.get(key) is block:
            del self._live[key], self._watches[key]
        if not self._over:
            self._events.append(Event(block, -block.size, self._part))

    def _enter_module(self, module: nn.Module, _args: object) -> None:
        self._module.append(self._names.get(id(module), type(module).__name__))

    def _leave_module(self, _module: nn.Module, _args: object, _result: object) -> None:
        self._module.pop()
