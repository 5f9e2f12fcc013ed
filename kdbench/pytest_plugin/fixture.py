"""The fixture `kd_memory`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

from kdbench.common.errors import InputError
from kdbench.spec.step_memory import StepMemory

if TYPE_CHECKING:
    import torch

    Modules = torch.nn.Module | Mapping[str, torch.nn.Module]

#: what a test report's properties are named with
PROPERTY = "kd_memory."


class KdMemory:
    """Measures the training steps of one test."""

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request
        self._names: list[str] = []
        self._checked: set[str] = set()

    def __call__(
        self,
        step: Callable[[], object],
        *,
        model: Modules | None = None,
        teacher: Modules | None = None,
        optimizer: Any = None,  # noqa: ANN401 - one torch.optim.Optimizer or several
        inputs: Any = (),  # noqa: ANN401 - tensors, however nested
        device: torch.device | str | None = None,
        warmup: int = 1,
        name: str | None = None,
        benchmark: Any = None,  # noqa: ANN401 - the fixture of pytest-benchmark
    ) -> StepMemory:
        """Run a training step `warmup` times, and once more under the ledger.

        Everything that the step uses counts, whether it is named here or not. What is named counts
        even if the step does not use it, and a failure names it.

        Args:
            step: runs one training step; takes nothing, and what it returns is dropped.
            model: the module that is trained, or several by name.
            teacher: a module that runs without being trained, or several by name.
            optimizer: an optimizer, or several.
            inputs: tensors, in lists, tuples and dicts as you like.
            device: whose memory counts; where model and inputs are unless given.
            warmup: steps before the measured one. With 0 it is the very first one, which has no
                gradients of a step before, and no optimizer state until its end.
            name: what this step is called where a test measures several.
            benchmark: where the figures go; the test's own `benchmark` fixture unless given.

        Raises:
            InputError: an argument that none can be, compiled code, or a step that used nothing.
        """
        __tracebackhide__ = True  # of a step that raises, pytest shows the step
        # Here and not above: torch takes seconds, which a test run without a step need not pay.
        from kdbench.worker.probes.user_step import measure_step

        label = self._label(name)
        used = measure_step(
            step,
            model=model,
            teacher=teacher,
            optimizer=optimizer,
            inputs=inputs,
            device=device,
            warmup=warmup,
        )
        self._keep(used, label, benchmark)
        return used

    def check(
        self, used: StepMemory, name: str | None = None, *, tolerance: float | str = 0
    ) -> None:
        """Fail if a step needs more than was recorded for it, and say what grew.

        The record is a text file beside the test, which `pytest --kd-memory-update` writes: the
        bytes at the peak by category and module, and the step's work, all exact.

        Args:
            used: what kd_memory returned.
            name: what the step is called in the file; the test's name unless given.
            tolerance: how much more is allowed: a fraction of each figure (0.01), or of the peak
                a size ("1 MiB").

        Raises:
            AssertionError: it needs more, or the record cannot tell.
            InputError: a broken file, or a name that the test has used before.
        """
        __tracebackhide__ = True
        # What reads and compares baselines imports pandas.
        from kdbench.pytest_plugin.recorded import Record

        label = self._request.node.name if name is None else name
        if label in self._checked:
            problem = f"a step of this test was checked as {label!r} before"
            raise InputError(problem, where="kd_memory", key="name", hint="give each its own")
        self._checked.add(label)
        record = Record(self._request.node.path, used.device)
        if self._request.config.getoption("kd_memory_update"):
            record.update(label, used)
            return
        comparison = record.compare(label, used, tolerance)
        if comparison.failure:
            raise AssertionError(comparison.failure)
        if comparison.note:
            self._report("note", comparison.note)

    def _label(self, name: str | None) -> str:
        """Name a step: the first of a test needs none, others without one have a number."""
        count = len(self._names) + 1
        label = name if name is not None else "" if count == 1 else str(count)
        if label in self._names:
            problem = f"a step of this test is called {label!r} already"
            raise InputError(problem, where="kd_memory", key="name", hint="give each its own")
        self._names.append(label)
        return label

    def _keep(self, used: StepMemory, label: str, benchmark: Any) -> None:  # noqa: ANN401
        """Put the figures where reports find them: JUnit, and pytest-benchmark's `extra_info`."""
        prefix = f"{label}." if label else ""
        figures = {f"{prefix}{key}": value for key, value in used.figures().items()}
        for key, value in figures.items():
            self._report(key, value)
        if benchmark is None and "benchmark" in self._request.fixturenames:
            benchmark = self._request.getfixturevalue("benchmark")
        kept = getattr(benchmark, "extra_info", None)
        if kept is not None:
            kept.update(figures)

    def _report(self, key: str, value: object) -> None:
        self._request.node.user_properties.append((f"{PROPERTY}{key}", value))
