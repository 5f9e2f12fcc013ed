"""What a card's kernels keep in memory where a CPU's keep something else.

A prediction for a card is traced with stand-ins for tensors of the CPU: stand-ins of the card's
would need its driver in backward. So the few operations whose kernels differ in what they save are
put in the place of the CPU's here. They have the shapes of the card's; nothing is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode

from kdbench.spec.device_profile import Kernel, Profile

_ATEN = torch.ops.aten
_DEVICE = torch.ops.prim.device.default

# What autocast computes in float32 on CUDA, of what these models do (torch's documentation,
# "CUDA Ops that can autocast to float32"). On a CPU it leaves these as they come.
_IN_FLOAT32 = (
    (F, "layer_norm"),
    (F, "softmax"),
    (F, "cross_entropy"),
    (torch, "softmax"),
    (torch, "log_softmax"),
    (Tensor, "softmax"),
    (Tensor, "log_softmax"),
    (Tensor, "norm"),
)
_HALF = (torch.bfloat16, torch.float16)

Function = Callable[..., Any]


@contextmanager
def card_kernels(profile: Profile) -> Iterator[None]:
    """Have torch's functions keep what the profile's card would have them keep.

    They are replaced where models look them up. torch's own way to intercept functions does not
    reach into what checkpointing computes again in backward.
    """
    attention = partial(_attention, profile, F.scaled_dot_product_attention)
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(_replaced(F, "dropout", partial(_dropout, F.dropout)))
        enter(_replaced(F, "scaled_dot_product_attention", attention))
        for home, name in _IN_FLOAT32:
            enter(_replaced(home, name, _in_float32(getattr(home, name))))
        yield


@contextmanager
def movable_modules() -> Iterator[None]:
    """Let modules of stand-ins be moved and converted (`.to(device)`).

    torch would put another stand-in in each parameter's place, and cannot, since it refers to each
    of them itself. Giving the parameter other data does the same.
    """

    def apply(module: nn.Module, function: Function, recurse: bool = True) -> nn.Module:
        if recurse:
            for child in module.children():
                child._apply(function, recurse)
        with torch.no_grad():
            for parameter in module.parameters(recurse=False):
                parameter.data = function(parameter)
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = function(buffer)
        return module

    with _replaced(nn.Module, "_apply", apply):
        yield


@contextmanager
def _replaced(home: Any, name: str, function: Function) -> Iterator[None]:  # noqa: ANN401
    own = name in vars(home)  # or it is of a class above
    before = getattr(home, name)
    setattr(home, name, function)
    try:
        yield
    finally:
        if own:
            setattr(home, name, before)
        else:
            delattr(home, name)


def _attention(
    profile: Profile,
    plain: Function,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **other: Any,  # noqa: ANN401
) -> Tensor:
    """Run the kernel that torch would choose on the card."""
    half = query.dtype in _HALF or torch.is_autocast_enabled("cpu")
    kernel: Kernel = profile.attention_half if half else profile.attention_float32
    attended: Tensor
    if kernel == "math" or attn_mask is not None or other.get("enable_gqa", False):
        attended = plain(query, key, value, attn_mask, dropout_p, is_causal, **other)
        return attended
    if half:
        dtype = query.dtype if query.dtype in _HALF else torch.get_autocast_dtype("cpu")
        query, key, value = (tensor.to(dtype) for tensor in (query, key, value))
    scale = other.get("scale")
    if kernel == "flash":
        attended = _ATEN._scaled_dot_product_flash_attention(
            query, key, value, dropout_p, is_causal, False, scale=scale
        )[0]
    else:
        attended = _ATEN._scaled_dot_product_efficient_attention(
            query, key, value, None, query.requires_grad, dropout_p, is_causal, scale=scale
        )[0]
    return attended


def _dropout(
    plain: Function,
    input: Tensor,  # noqa: A002 - torch's own name for it
    p: float = 0.5,
    training: bool = True,
    inplace: bool = False,
) -> Tensor:
    """Keep a mask of one byte for each element, as CUDA's kernel does; a CPU keeps floats."""
    kept: Tensor
    if not training or p == 0 or inplace:
        kept = plain(input, p, training, inplace)
    else:
        kept = torch.native_dropout(input, p, training)[0]
    return kept


def _in_float32(plain: Function) -> Function:
    """Have a function convert what it is given, where autocast is on."""

    @wraps(plain)
    def converting(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if torch.is_autocast_enabled("cpu"):
            args = tuple(
                a.float() if isinstance(a, Tensor) and a.dtype in _HALF else a for a in args
            )
        return plain(*args, **kwargs)

    return converting


class NoValues(TorchDispatchMode):
    """Answers for the values that stand-ins do not have. Of several modes, it is entered last.

    What a step reads back to the host decides nothing about its memory here: a count of steps that
    an optimizer divides by, or how many classes a budget left out. Whole numbers are 0 then, and
    others 1.
    """

    def __torch_dispatch__(
        self,
        func: Any,  # noqa: ANN401
        types: Any,  # noqa: ANN401
        args: Any = (),  # noqa: ANN401
        kwargs: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Run an operation, unless it is one that reads a value."""
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            # asked several times for each operation: not worth the way through all modes
            return args[0].fake_device
        if func is _ATEN._local_scalar_dense.default:
            return 1.0 if args[0].dtype.is_floating_point else 0
        return func(*args, **(kwargs or {}))
