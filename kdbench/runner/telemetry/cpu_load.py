"""How busy others keep the processors: what /proc/stat counts less what our processes used."""

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
# proc(5): user nice system idle iowait irq softirq steal; what follows is contained in user
_FIELDS, _IDLE = 8, (3, 4)
# A tick is a hundredth of a second wherever Linux reports it.
_FEWEST_TICKS = 50


def usable_processors() -> frozenset[int] | None:
    """Return the processors that this process, and what it starts, may run on."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def usable_cores(usable: Collection[int], root: Path = Path("/")) -> int | None:
    """Count the cores behind some processors: two hardware threads of a core share it."""
    cores = set()
    for number in usable:
        folder = root / f"sys/devices/system/cpu/cpu{number}/topology"
        try:
            cores.add((folder / "thread_siblings_list").read_text(encoding="utf-8").strip())
        except OSError:
            return None
    return len(cores) or None


@dataclass(frozen=True)
class _Reading:
    """In ticks since boot: of the usable processors, all time and the busy part of it; our own."""

    total: int
    busy: int
    own: Mapping[int, int]


class Processors:
    """Measures how many of the usable processors others keep busy, from reading to reading.

    Others are all that is neither the worker with its children nor kdbench itself: other programs,
    the kernel's own work, and what a hypervisor took away (steal). Processors that the worker may
    not run on do not count: who is busy there does not contend for them.
    """

    def __init__(
        self, kdbench: Collection[int], usable: Collection[int], proc: Path = _PROC
    ) -> None:
        self._kdbench = tuple(kdbench)
        self._names = frozenset(f"cpu{number}" for number in usable)
        self._proc = proc
        self._last: _Reading | None = None

    def elsewhere(self, worker: Collection[int] = ()) -> float | None:
        """Return the mean number of processors that others kept busy since the last reading.

        None for the first reading, where the kernel does not tell, and where one of our processes
        has ended meanwhile: what it used last is not known.
        """
        last, now = self._last, self._read(worker)
        ticks = (now.total - last.total) / len(self._names) if last and now else None
        if ticks is not None and 0 <= ticks < _FEWEST_TICKS:
            return None  # so short a time, in whole ticks, says nothing: the next reading covers it
        self._last = now
        if last is None or now is None or ticks is None:
            return None
        ended = (last.own.keys() - now.own.keys()) & {*self._kdbench, *list(worker)[:1]}
        if ticks < 0 or ended:
            return None
        # A child that was waited for lives on in its parent's count, so the sum is what matters.
        own = sum(now.own.values()) - sum(last.own.values())
        if not 0 <= own <= 1.1 * (now.total - last.total) + 2:
            return None
        return max(0.0, (now.busy - last.busy - own) / ticks)

    def observable(self) -> bool:
        """Whether the kernel counts all of the usable processors' time."""
        read = self._read(())
        return read is not None and read.total > 0

    def _read(self, worker: Collection[int]) -> _Reading | None:
        try:
            lines = (self._proc / "stat").read_text(encoding="utf-8").splitlines()
        except OSError:
            return None
        found = [line.split() for line in lines if line.partition(" ")[0] in self._names]
        counts = [[int(n) for n in line[1 : 1 + _FIELDS]] for line in found]
        if len(counts) != len(self._names):
            return None
        idle = sum(sum(line[index] for index in _IDLE) for line in counts)
        total = sum(map(sum, counts))
        own = {pid: _ticks(self._proc, pid, children=False) for pid in self._kdbench}
        own |= {pid: _ticks(self._proc, pid, children=True) for pid in worker}
        return _Reading(total, total - idle, {p: t for p, t in own.items() if t is not None})


def _ticks(proc: Path, pid: int, *, children: bool) -> int | None:
    """Return the processor time of a process, perhaps with its ended children's, in ticks."""
    try:
        text = (proc / str(pid) / "stat").read_text(encoding="utf-8")
    except OSError:
        return None
    # A name may hold spaces and brackets; what counts follows its last one. From there: utime and
    # stime are the 12th and 13th, those of waited-for children the next two.
    fields = text.rpartition(")")[2].split()
    return sum(int(value) for value in fields[11 : 15 if children else 13])
