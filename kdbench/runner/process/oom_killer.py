"""Counts the processes that the kernel kills when memory runs out."""

import re
from dataclasses import dataclass
from pathlib import Path

from kdbench.common.memory_limits import control_groups

ROOT = Path("/")

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class OomKills:
    """How many processes the kernel killed meanwhile."""

    count: int
    #: the control group that counts them, or the whole machine
    where: str


@dataclass(frozen=True)
class _Counter:
    file: Path
    where: str

    def read(self) -> int | None:
        try:
            found = _COUNT.search(self.file.read_text(encoding="utf-8"))
        except OSError:
            return None
        return int(found[1]) if found else None


class OomKillCounter:
    """Counts the kernel's kills from now on.

    A worker is in its runner's control group, whose counter covers its processes (in version 2
    also those of the groups below it). A group above it counts others' processes too, and is used
    only where a container shows no lower one; the machine's counter is the last resort.

    Args:
        root: of the file system that has /proc and /sys; None for the real one.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._counter = _counter(ROOT if root is None else root)
        self._before = self._counter.read() if self._counter else None

    def kills(self) -> OomKills | None:
        """Return the kills since the start; None where the kernel does not count them."""
        now = self._counter.read() if self._counter else None
        if self._counter is None or self._before is None or now is None:
            return None
        return OomKills(max(0, now - self._before), self._counter.where)


def _counter(root: Path) -> _Counter | None:
    counters = [
        _Counter(
            group.folder / ("memory.events" if group.version == 2 else "memory.oom_control"),
            f"control group {group.name}",
        )
        for group in control_groups(root)
    ]
    counters.append(_Counter(root / "proc/vmstat", "the whole machine"))
    return next((counter for counter in counters if counter.read() is not None), None)
