"""The arithmetic of a training: fp32, tf32, bf16 or fp16, and what each needs."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from kdbench.common.errors import InputError
from kdbench.spec.settings import Precision

# What autocast computes in; the others compute in float32, of which TF32 is a way.
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: Precision, device: torch.device) -> None:
    """Make sure that the device computes in a precision; all do in fp32, bf16 and fp16."""
    if precision != "tf32":
        return
    if device.type != "cuda":
        problem = f"tf32 is a mode of CUDA devices, found the device {device}"
        hint = 'on a CPU: "fp32", "bf16" or "fp16"'
        raise InputError(problem, key="training.precision", hint=hint)
    if not _computes_tf32(device):
        problem = f"{torch.cuda.get_device_name(device)} does not compute in tf32"
        hint = "NVIDIA's cards do from Ampere (capability 8.0) on"
        raise InputError(problem, key="training.precision", hint=hint)


def set_precision(precision: Precision, device: torch.device) -> None:
    """Say for the whole process whether float32 products and convolutions may go through TF32.

    Only `tf32` lets them. torch's own defaults are mixed (convolutions may, matrix products may
    not), so a process sets this before it computes anything that counts.
    """
    check_precision(precision, device)
    tf32 = precision == "tf32"
    # These two rather than the `fp32_precision` of each operator: they keep both of torch's sets of
    # flags in step, and torch's compiler reads the older set, which raises when they differ.
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    torch.backends.cudnn.allow_tf32 = tf32


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Enter what a forward pass of this precision runs in."""
    dtype = _AUTOCAST.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


def make_scaler(precision: Precision, device: torch.device) -> torch.amp.GradScaler | None:
    """Make the scaler that keeps fp16's small gradients from vanishing; None for the others.

    A step whose gradients overflow under its scale leaves the weights alone and halves the scale.
    """
    return torch.amp.GradScaler(device.type) if precision == "fp16" else None


def _computes_tf32(device: torch.device) -> bool:
    with torch.cuda.device(device):
        return torch.cuda.is_tf32_supported()
