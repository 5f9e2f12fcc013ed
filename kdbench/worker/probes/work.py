"""The work of a step, counted at dispatch: arithmetic, operations and bytes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from kdbench.worker.probes.dispatch import OperationMode

_ATEN = torch.ops.aten


def _attention_flops(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward_flops(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape))


# torch's own list lacks the fused attention of CPUs; the formulas are those of CUDA's kernels.
# torch's entry takes precedence once it has one.
_FORMULAS: dict[Any, Callable[..., int]] = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
    **flop_registry,
}


# These allocate without computing, or read a single value back to the host.
_NO_WORK = {
    _ATEN.empty,
    _ATEN.empty_like,
    _ATEN.empty_strided,
    _ATEN.new_empty,
    _ATEN.new_empty_strided,
    _ATEN._local_scalar_dense,
    _ATEN.lift_fresh,
}


class WorkCounter(OperationMode):
    """Counts arithmetic, operations and bytes while it is entered.

    `flops` counts a multiplication and an addition as two, for matrix products, convolutions and
    attention, by the formulas of `torch.utils.flop_counter`. That module's own mode is not used:
    it decomposes operations to find those it knows, and the step would allocate other memory. Not
    counted are element-wise work, reductions, and products with a vector.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0
        #: dispatched operations that compute or copy; views do neither
        self.operations = 0
        #: bytes of all tensors that those operations read and returned
        self.bytes_moved = 0

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation as it is, and count it."""
        result = func(*args, **kwargs)
        packet = getattr(func, "overloadpacket", None)
        formula = _FORMULAS.get(packet)
        if formula is not None:
            self.flops += int(formula(*args, **kwargs, out_val=result))
        # `prim` operations query a tensor's properties; `profiler` operations are marks.
        query = func.namespace in ("prim", "profiler")
        if not (query or packet in _NO_WORK or getattr(func, "is_view", False)):
            self.operations += 1
            for leaf in tree_leaves((args, kwargs, result)):
                if isinstance(leaf, Tensor):
                    self.bytes_moved += leaf.numel() * leaf.element_size()
        return result
