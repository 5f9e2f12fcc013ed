"""GPU kernels that save other tensors than the CPU's, for a trace on the CPU.

A prediction for a GPU is traced with fake CPU tensors: fake CUDA tensors would need its driver in
backward. So the few operations whose kernels differ in what they save are replaced here. Their
results have the shapes of the GPU's; nothing is computed.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from kdbench.spec.device_profile import Kernel, Profile
from kdbench.worker.probes.dispatch import OperationMode

_ATEN = torch.ops.aten
_DEVICE = torch.ops.prim.device.default

# The operations of these models that autocast computes in float32 on CUDA (torch's documentation,
# "CUDA Ops that can autocast to float32"), but not on a CPU.
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
    """Have torch's functions save what they would save on the profile's GPU.

    They are replaced where models look them up: torch's own function modes do not reach what
    checkpointing recomputes in backward.
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
    """Let modules of fake tensors be moved and converted (`.to(device)`).

    torch would swap each parameter for another fake tensor, which fails because it holds references
    to them. Setting the parameter's data does the same.
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
def _replaced(home: Any, name: str, function: Function) -> Iterator[None]:
    own = name in vars(home)  # or inherited
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
    **other: Any,
) -> Tensor:
    """Run the kernel that torch would choose on the GPU."""
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
    """Save a mask of one byte per element, as CUDA's kernel does; a CPU's saves floats."""
    kept: Tensor
    if not training or p == 0 or inplace:
        kept = plain(input, p, training, inplace)
    else:
        kept = torch.native_dropout(input, p, training)[0]
    return kept


def _in_float32(plain: Function) -> Function:
    """Convert a function's arguments to float32 while autocast is on."""

    @wraps(plain)
    def converting(*args: Any, **kwargs: Any) -> Any:
        if torch.is_autocast_enabled("cpu"):
            args = tuple(
                a.float() if isinstance(a, Tensor) and a.dtype in _HALF else a for a in args
            )
        return plain(*args, **kwargs)

    return converting


class FakeValues(OperationMode):
    """Answers reads of values that fake tensors do not have. Of several modes, enter it last.

    What a step reads back to the host does not affect its memory here: an optimizer's step count,
    or how many classes a budget left out. Integers read as 0, floats as 1.
    """

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation, unless it reads a value."""
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            # asked several times per operation: answer without passing through all modes
            return args[0].fake_device
        if func is _ATEN._local_scalar_dense.default:
            return 1.0 if args[0].dtype.is_floating_point else 0
        return func(*args, **kwargs)
