"""The axes of a matrix, and the points of the grid that they span."""

import itertools
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from pydantic import Field, PositiveInt

from kdbench.common.errors import InputError, near_or_all
from kdbench.common.validation import validate
from kdbench.spec.settings import Attention, Frozen, Loss, Name, OptimizerKernels, Precision, Side

#: values by axis
Values = Mapping[str, tuple[Any, ...]]
#: one value by axis; None on an axis without values
Point = Mapping[str, Any]

# A sweep above this is a typing error, refused before anything is built.
MAX_CELLS = 100_000
# Each entry is compared with each point.
MAX_ENTRIES = 256


class AxisValues(Frozen):
    """Values by axis. A scalar may stand for a list of one."""

    method: tuple[Name, ...] | None = Field(default=None, strict=False)
    student: tuple[Name, ...] | None = Field(default=None, strict=False)
    image_size: tuple[Side, ...] | None = Field(default=None, strict=False)
    teacher: tuple[Name, ...] | None = Field(default=None, strict=False)
    batch_size: tuple[PositiveInt, ...] | None = Field(default=None, strict=False)
    precision: tuple[Precision, ...] | None = Field(default=None, strict=False)
    attention: tuple[Attention, ...] | None = Field(default=None, strict=False)
    compile: tuple[bool, ...] | None = Field(default=None, strict=False)
    checkpointing: tuple[bool, ...] | None = Field(default=None, strict=False)
    optimizer_kernels: tuple[OptimizerKernels, ...] | None = Field(default=None, strict=False)
    loss: tuple[Loss, ...] | None = Field(default=None, strict=False)
    alpha2: tuple[float, ...] | None = Field(default=None, strict=False)
    learning_rate: tuple[float, ...] | None = Field(default=None, strict=False)

    def given(self) -> dict[str, tuple[Any, ...]]:
        """Return the axes that have values, in the order in which cells are counted through."""
        return {
            name: value
            for name in type(self).model_fields
            if (value := getattr(self, name)) is not None
        }


AXES = tuple(AxisValues.model_fields)
# These axes every matrix has, and every label starts with; the others refine `[training]`.
MAIN_AXES = ("method", "student", "image_size", "teacher")


def parse_values(entry: Mapping[str, Any], *, key: str) -> dict[str, Any]:
    """Check a table of values by axis: the grid's own, or an entry of exclude or include.

    A scalar stands for a list of one. Raises InputError for an unknown axis or a wrong value.
    """
    lists = {name: value if isinstance(value, list) else [value] for name, value in entry.items()}
    for name in lists:
        if name not in AXES:
            hint = near_or_all(name, AXES, "axes")
            raise InputError("unknown axis", key=f"{key}.{name}", hint=hint)
    for name, values in lists.items():
        if not values:
            raise InputError("expected at least one value, found none", key=f"{key}.{name}")
    return validate(AxisValues, lists, prefix=key, written=entry).given()


def points(axes: Values) -> Iterator[Point]:
    """Count through all combinations, the last axis fastest; an axis without values has None."""
    lists = {name: tuple(dict.fromkeys(values)) or (None,) for name, values in axes.items()}
    count = prod(len(values) for values in lists.values())
    if count > MAX_CELLS:
        raise InputError(f"expected at most {MAX_CELLS} cells, found {count}", key="axes")
    for values in itertools.product(*lists.values()):
        yield dict(zip(lists, values, strict=True))


def included(values: Values, axes: Values, *, key: str) -> Iterator[Point]:
    """Complete an included entry: an axis it leaves out has the grid's value, if that is one."""
    complete = dict(values)
    for name, known in axes.items():
        if name in complete or (name == "teacher" and not known):
            continue
        if len(known) != 1:
            problem = f"expected a value for the axis {name!r}, which has several"
            raise InputError(problem, key=f"{key}.{name}")
        complete[name] = known
    complete.setdefault("teacher", ())
    yield from points(complete)


def matches(point: Point, entry: Values) -> bool:
    """Whether an exclude entry names this point: every axis it names has one of its values."""
    return all(point.get(name) in values for name, values in entry.items())
