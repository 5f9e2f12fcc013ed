"""Who else is on the card: the worker's processes told apart from others', by pid or without."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.common.errors import printable

if TYPE_CHECKING:
    from kdbench.runner.telemetry.gpu import Listed


@dataclass(frozen=True)
class Neighbour:
    """One process that is not the worker's."""

    pid: int  #: as the driver numbers it, which in a container may be its number elsewhere
    name: str | None  #: what /proc calls it; None where the driver's numbers are not /proc's
    computing: bool | None  #: whether it kept the card busy; None where the driver does not tell


@dataclass(frozen=True)
class NeighbourReading:
    """What one reading of the card's process list says."""

    worker_bytes: int | None  #: held by the worker and its children; None if not reported
    others: tuple[Neighbour, ...]  #: those known to be others'
    more: int = 0  #: how many others there are besides, of which it is not known who they are

    @property
    def count(self) -> int:
        """How many others there are at least."""
        return len(self.others) + self.more


class Neighbours:
    """Tells the worker from others on a card's process list.

    What was there before the worker started is another's, whatever its number. Of what came later,
    the worker's own pid and its children's are its own, and all else is another's, if the driver
    numbers processes as we do. In a container it may not: then one of those that came later may be
    the worker, and only the rest is sure to be others'.
    """

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._before: frozenset[int] | None = None
        self._same_numbers = False

    def read(
        self, listed: Listed | None, own: Collection[int], computing: Collection[int] | None
    ) -> NeighbourReading | None:
        """Take in one reading; the first is to be made before the worker is started.

        `listed` are the card's processes, `computing` those that kept it busy (None: not known);
        `own` are the worker and its children, by our numbers, empty before it starts.
        """
        if self._before is None:
            self._before = frozenset(pid for pid, _ in listed or ())
        if listed is None:
            return None
        ours = {pid for pid, _ in listed if pid in own} - self._before
        self._same_numbers = self._same_numbers or bool(ours)
        came = {pid for pid, _ in listed} - self._before - ours
        unsure = bool(own) and not self._same_numbers
        known = {pid for pid, _ in listed if pid in self._before} | (set() if unsure else came)
        return NeighbourReading(
            worker_bytes=_held(listed, ours),
            others=tuple(self._describe(pid, computing) for pid in sorted(known)),
            more=max(0, len(came) - 1) if unsure else 0,
        )

    def _describe(self, pid: int, computing: Collection[int] | None) -> Neighbour:
        name = None
        if self._same_numbers:
            with suppress(OSError):  # it has ended, or is hidden
                comm = self._proc / str(pid) / "comm"
                read = comm.read_text(encoding="utf-8", errors="backslashreplace")
                name = printable(read.strip()) or None
        return Neighbour(pid, name, None if computing is None else pid in computing)


def _held(listed: Listed, ours: Collection[int]) -> int | None:
    """Sum what our processes hold, in bytes; None where any of it is unknown.

    Some containers report 0 for every process. A sum with a part unknown would be a number, and
    wrong.
    """
    used = [used for pid, used in listed if pid in ours]
    return sum(u or 0 for u in used) if used and all(used) else None
