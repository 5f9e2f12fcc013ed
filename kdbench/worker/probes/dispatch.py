"""What a record of dispatched operations is built from."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class OperationMode(TorchDispatchMode):
    """Passes every dispatched operation to `run` while it is entered."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Handle an operation as torch asks modes to."""
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run one operation and return its result."""
        return func(*args, **kwargs)


def storage_of(tensor: Tensor) -> torch.UntypedStorage | None:
    """Return a tensor's storage; None: it has none, as a sparse tensor."""
    try:
        return tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


@contextmanager
def no_collection() -> Iterator[None]:
    """Collect garbage now and none until the end: within, reference counts alone free memory.

    The interpreter frees reference cycles at times of its own choice, which would move the peak.
    """
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
