"""Traces shared by cells that differ in nothing that decides what is allocated."""

from collections import OrderedDict

from kdbench.predict.trace import Trace, trace
from kdbench.spec.cell import CellRun, digest
from kdbench.spec.device_profile import Profile
from kdbench.spec.method import BUILT_IN

# A trace takes some megabytes; cells that share one are neighbours in a matrix.
_MOST = 32
# A step only multiplies by these. A plug-in's method may do more with them.
_VALUES = ("alpha1", "alpha2", "learning_rate")


class TraceCache:
    """Makes each trace once.

    Args:
        profile: the traces' device.

    Attributes:
        made: how many have been made.
        largest: the largest batch that fits, by `family_of` the cell and the available bytes.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self.made = 0
        self.largest: dict[tuple[str, int], int] = {}
        self._traces: OrderedDict[str, Trace] = OrderedDict()

    def get(self, run: CellRun) -> Trace:
        """Return the trace of a cell, made once."""
        key = kind_of(run)
        if key not in self._traces:
            self.made += 1
            self._traces[key] = trace(run, self.profile)
        self._traces.move_to_end(key)
        if len(self._traces) > _MOST:
            self._traces.popitem(last=False)
        return self._traces[key]


def kind_of(run: CellRun) -> str:
    """Digest everything that decides a cell's trace."""
    return _digest(run, set())


def family_of(run: CellRun) -> str:
    """Digest everything that decides a cell's trace except its batch size."""
    return _digest(run, {"batch_size"})


def _digest(run: CellRun, free: set[str]) -> str:
    cell = run.cell
    if cell.method in BUILT_IN:
        free = free.union(_VALUES)
    named = {"label", "matrix", "student_name", "teacher_name", "training"}
    training = cell.training.model_dump(mode="json", exclude=free)
    return digest({"cell": cell.model_dump(mode="json", exclude=named), "training": training})
