"""What the author of a method may import; everything else is private, and may move.

A package of yours declares a method and gives its step (docs/how-to/add-a-method.md):

    from kdbench.plugin import Method
    METHOD = Method(step="my_package.step:my_method", teacher="image-embeddings")

and, in the module of the step:

    from kdbench.plugin import Batch, Forward, Mark, Parts, StepResult, combined

`Method` is resolved without torch, which planning a matrix never loads; the others load it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from kdbench.common.errors import InputError
from kdbench.spec.method import Method, TeacherUse

if TYPE_CHECKING:
    from kdbench.worker.training.methods import (
        Batch,
        Forward,
        Mark,
        Parts,
        StepResult,
        combined,
        cosine_logits,
    )

__all__ = [
    "Batch",
    "Forward",
    "InputError",
    "Mark",
    "Method",
    "Parts",
    "StepResult",
    "TeacherUse",
    "combined",
    "cosine_logits",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'kdbench.plugin' has no attribute {name!r}")
    return getattr(import_module("kdbench.worker.training.methods"), name)


def __dir__() -> list[str]:
    return __all__
