"""Floating-point operations of a step, counted where they are dispatched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
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


class FlopCounter(TorchDispatchMode):
    """Counts matrix products, convolutions and attention while it is entered.

    A multiplication and an addition are two operations. By the formulas of
    `torch.utils.flop_counter`, whose own mode is not used: it takes operations apart to find
    those it knows, and the step would allocate other memory. Not counted are element-wise work,
    reductions, and products with a vector.

    Attributes:
        count: operations so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Run the operation as it is, and count it."""
        result = func(*args, **(kwargs or {}))
        formula = _FORMULAS.get(getattr(func, "overloadpacket", None))
        if formula is not None:
            self.count += int(formula(*args, **(kwargs or {}), out_val=result))
        return result
