"""What a step does, counted where it is dispatched: arithmetic, operations, bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

_ATEN = torch.ops.aten


def _cpu_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:  # noqa: ANN401
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _cpu_attention_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *_: Any,  # noqa: ANN401
    **__: Any,  # noqa: ANN401
) -> int:
    return int(sdpa_backward_flop_count(gradient.shape, query.shape, key.shape, value.shape))


# torch's own list lacks the fused attention of CPUs; the formulas are those of the cards' kernels.
# What torch counts by itself one day is counted by torch.
_FORMULAS: dict[Any, Callable[..., int]] = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: _cpu_attention,
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: _cpu_attention_backward,
    **flop_registry,
}


# Makes room and computes nothing, or reads a single value back to the host.
_NO_WORK = {
    _ATEN.empty,
    _ATEN.empty_like,
    _ATEN.empty_strided,
    _ATEN.new_empty,
    _ATEN.new_empty_strided,
    _ATEN._local_scalar_dense,
    _ATEN.lift_fresh,
}


class WorkCounter(TorchDispatchMode):
    """Counts what a step does while it is entered: arithmetic, operations and bytes.

    In `flops` a multiplication and an addition are two operations; counted are matrix products,
    convolutions and attention, by the formulas of `torch.utils.flop_counter`, whose own mode is not
    used: it takes operations apart to find those it knows, and the step would allocate other
    memory. Not counted are element-wise work, reductions, and products with a vector.

    Attributes:
        flops: floating-point operations so far.
        operations: operations dispatched so far that compute or copy; views do neither.
        bytes_moved: bytes of all tensors that those were given and returned.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0
        self.operations = 0
        self.bytes_moved = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Run the operation as it is, and count it."""
        result = func(*args, **(kwargs or {}))
        packet = getattr(func, "overloadpacket", None)
        formula = _FORMULAS.get(packet)
        if formula is not None:
            self.flops += int(formula(*args, **(kwargs or {}), out_val=result))
        # of `prim` are questions to a tensor, such as where it is; of `profiler`, marks
        told = func.namespace in ("prim", "profiler")
        idle = told or packet in _NO_WORK or getattr(func, "is_view", False)
        if not idle:
            self.operations += 1
            for leaf in tree_leaves((args, kwargs, result)):
                if isinstance(leaf, Tensor):
                    self.bytes_moved += leaf.numel() * leaf.element_size()
        return result
