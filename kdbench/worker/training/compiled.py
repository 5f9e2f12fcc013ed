"""The student compiled by torch: once, before anything is timed, or one clear error."""

import gc
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.common.errors import InputError

_NEEDED = {
    "cpu": "on a CPU it needs a C++ compiler: install g++, or name yours in CXX",
    "cuda": "on CUDA it needs Triton (pip install triton) and a C compiler: install gcc, "
    "or name yours in CC",
}


def compile_lazily(student: nn.Module) -> None:
    """Have `student(...)` compiled when it is first called; names and parameters stay.

    For one shape of batch: a training has no other, and code for any shape would be slower.
    """
    student.compile(dynamic=False)


def compile_now(student: nn.Module, images: Tensor) -> None:
    """Compile forward and backward for such images, under the caller's autocast.

    Weights, gradients and random numbers stay as they were.
    """
    # Imported by the compiler anyway, and by nobody who does not compile: it takes a second.
    from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415

    cuda = images.device.type == "cuda"
    with torch.random.fork_rng(devices=[images.device] if cuda else []):
        try:
            outputs = student(images)
            sum(output.float().sum() for output in outputs).backward()
        except TorchDynamoException as error:
            raise InputError(
                f"torch cannot compile the student: {_reason(error)}",
                key="training.compile",
                hint=_NEEDED.get(images.device.type),
            ) from error
    student.zero_grad(set_to_none=True)
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()  # what compiling reserved is no part of a step's peak


def eagerly(*, compiled: bool) -> AbstractContextManager[Any]:
    """Run a student without its compiled code, and compile nothing.

    Evaluation runs so: code for its mode and its batches, the last one smaller, would take longer
    to compile than it saves, and the compiler would meet the student between timed steps.
    """
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _reason(error: Exception) -> str:
    """Find the line of a long message that says what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    return (errors or lines or [type(error).__name__])[0][:300]
