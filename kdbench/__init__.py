"""What does a knowledge distillation cost, in memory and time?

    import kdbench
    matrix = kdbench.load_matrix("benchmarks/fig4.toml")
    kdbench.run(matrix, out="results")
    kdbench.load_results("results").cells

The names are resolved on first use: importing kdbench loads nothing heavy, and torch never.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kdbench.analysis.results import Results, load_results
    from kdbench.api import run
    from kdbench.common.errors import InputError, KdbenchError
    from kdbench.gate.check import Gate, check, update_baseline
    from kdbench.matrix.file import Matrix, load_matrix

__version__ = "0.1.0"

_HOMES = {
    "Gate": "kdbench.gate.check",
    "InputError": "kdbench.common.errors",
    "KdbenchError": "kdbench.common.errors",
    "Matrix": "kdbench.matrix.file",
    "Results": "kdbench.analysis.results",
    "check": "kdbench.gate.check",
    "load_matrix": "kdbench.matrix.file",
    "load_results": "kdbench.analysis.results",
    "run": "kdbench.api",
    "update_baseline": "kdbench.gate.check",
}

__all__ = [
    "Gate",
    "InputError",
    "KdbenchError",
    "Matrix",
    "Results",
    "__version__",
    "check",
    "load_matrix",
    "load_results",
    "run",
    "update_baseline",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'kdbench' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
