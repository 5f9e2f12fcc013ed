"""What `kdbench check` compares of a cell, and how far each figure may grow."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from kdbench.common.errors import InputError, did_you_mean, quoted, short_repr
from kdbench.common.units import parse_size

#: exact: the same on every run, so any difference is a change; time: differs from process to
#: process, and takes a test; advisory: told, and never decides
Kind = Literal["exact", "time", "advisory"]
Source = Literal["measured", "predicted"]
Stage = Literal["steady", "first", "precompute"]

# What is told of an advisory figure unless the matrix file says otherwise, and what of a time.
_NOTICEABLE = 0.05


@dataclass(frozen=True)
class GatedMetric:
    """One figure that is compared; less of it is better."""

    name: str  #: what baselines, tolerances and reports call it
    column: str  #: its column of `cells`
    unit: Literal["bytes", "seconds", "count"]  #: what its values are
    measured: Kind | None  #: what it is of measured runs; None: not looked at
    predicted: Kind | None  #: the same of predictions
    #: whose peak explains it, in the table `memory`; None where no memory does
    stage: Stage | None = None

    def kind(self, source: Source) -> Kind | None:
        """Say what it is in rows of this source."""
        return self.measured if source == "measured" else self.predicted


def _bytes(
    name: str, measured: Kind | None, predicted: Kind | None, stage: Stage | None = None
) -> GatedMetric:
    return GatedMetric(name, name, "bytes", measured, predicted, stage)


def _count(name: str) -> GatedMetric:
    return GatedMetric(name, name, "count", "exact", "exact")


# A card's polled memory is a lower bound, and what an allocator reserves or a process has resident
# depends on what came before: of measured runs these are told and do not decide.
_METRICS = (
    _bytes("parameter_bytes", "exact", "exact", "steady"),
    _bytes("allocated_peak_bytes", "exact", "exact", "steady"),
    _bytes("reserved_peak_bytes", "advisory", "exact", "steady"),
    _bytes("first_allocated_peak_bytes", None, "exact", "first"),
    _bytes("first_reserved_peak_bytes", None, "exact", "first"),
    _bytes("precompute_peak_bytes", "exact", "exact", "precompute"),
    _bytes("precompute_kept_bytes", "exact", "exact"),
    _count("flops_step"),
    _count("operations_step"),
    _count("bytes_moved_step"),
    GatedMetric("step_seconds", "step_seconds_fastest", "seconds", "time", None),
    _bytes("process_peak_bytes", "advisory", None),
    _bytes("device_peak_bytes", "advisory", None),
    _bytes("host_peak_bytes", "advisory", None),
)
# What is kept beside the times: how busy others kept the machine. It explains, and is not compared.
LOAD = "cpu_elsewhere"
#: by name
GATED_METRICS: Mapping[str, GatedMetric] = {metric.name: metric for metric in _METRICS}


@dataclass(frozen=True)
class Tolerance:
    """How far a figure may grow before it counts; the larger of both holds."""

    fraction: float = 0.0  #: of the value before
    size: int = 0  #: in bytes
    off: bool = False  #: the figure is not compared at all

    def allowed(self, before: float) -> float:
        """Return the growth from `before` that still holds, in its unit."""
        return max(self.fraction * before, self.size)


@dataclass(frozen=True)
class Tolerances:
    """The tolerances that a matrix file sets; the others have their defaults."""

    given: tuple[tuple[str, Tolerance], ...] = ()

    def of(self, metric: GatedMetric, kind: Kind) -> Tolerance:
        """Return a figure's tolerance: none at all for exact ones, 5 % for the others."""
        return dict(self.given).get(metric.name, Tolerance(0.0 if kind == "exact" else _NOTICEABLE))

    @property
    def switched_off(self) -> tuple[str, ...]:
        """Names of the figures that are not compared."""
        return tuple(name for name, tolerance in self.given if tolerance.off)


def parse_tolerances(table: Mapping[str, Any]) -> Tolerances:
    """Read `[tolerances]`: a figure to a fraction, a size in quotes ("1 MiB") or "off"."""
    given = []
    for name, value in table.items():
        key = f"tolerances.{name}"
        if name not in GATED_METRICS:
            hint = did_you_mean(name, GATED_METRICS) or f"they are {quoted(GATED_METRICS)}"
            raise InputError("no figure of this name", key=key, hint=hint)
        try:
            given.append((name, _parsed(value, GATED_METRICS[name])))
        except ValueError as error:
            raise InputError(str(error), key=key) from None
    return Tolerances(tuple(sorted(given)))


def _parsed(value: object, metric: GatedMetric) -> Tolerance:
    if value == "off":
        return Tolerance(off=True)
    if isinstance(value, str) and metric.unit == "bytes":
        return Tolerance(size=parse_size(value))
    sizes = ' or a size in quotes ("1 MiB"),' if metric.unit == "bytes" else ""
    expected = f'expected a fraction up to 1 (0.05: 5 %),{sizes} or "off"'
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"{expected}, found {short_repr(value)}")
    if metric.unit == "seconds" and value == 0:
        raise ValueError("expected more than 0: no two times are the same, found 0")
    return Tolerance(fraction=float(value))
