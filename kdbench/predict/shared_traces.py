"""Traces that cells share: those that differ in nothing that decides what is allocated."""

from __future__ import annotations

from collections import OrderedDict

from kdbench.predict.trace import Trace, trace
from kdbench.spec.cell import CellRun, digest
from kdbench.spec.device_profile import Profile
from kdbench.spec.method import BUILT_IN

# A trace has an entry for each block, some megabytes in all; the cells that share one lie beside
# each other in a matrix.
_MOST = 32
# A step multiplies by these, whatever they are. A plug-in's method may do more with them.
_VALUES = ("alpha1", "alpha2", "learning_rate")


class Traces:
    """Makes each trace once.

    Args:
        profile: the device that they are for.

    Attributes:
        made: how many have been made.
        largest: the largest batch that fits, by the cells' `family` and the bytes there are.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.made = 0
        self.largest: dict[tuple[str, int], int] = {}
        self._kept: OrderedDict[str, Trace] = OrderedDict()

    def of(self, run: CellRun) -> Trace:
        """Return the trace of a cell.

        Raises:
            InputError: the cell cannot be run on such a device.
        """
        key = kind_of(run)
        if key not in self._kept:
            self.made += 1
            self._kept[key] = trace(run, self.profile)
        self._kept.move_to_end(key)
        if len(self._kept) > _MOST:
            self._kept.popitem(last=False)
        return self._kept[key]


def kind_of(run: CellRun) -> str:
    """Digest what decides a cell's trace."""
    return _digest(run, set())


def family_of(run: CellRun) -> str:
    """Digest what decides a cell's traces beside the size of its batch."""
    return _digest(run, {"batch_size"})


def _digest(run: CellRun, free: set[str]) -> str:
    cell = run.cell
    if cell.method in BUILT_IN:
        free = free.union(_VALUES)
    named = {"label", "matrix", "student_name", "teacher_name", "training"}
    training = cell.training.model_dump(mode="json", exclude=free)
    return digest({"cell": cell.model_dump(mode="json", exclude=named), "training": training})
