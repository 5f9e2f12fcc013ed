"""The kernel's killer, which ends a process when memory has run out: whom it ended is counted."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kdbench.common.memory_limits import control_groups

ROOT = Path("/")

_COUNT = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class OomKills:
    """How many processes the kernel's killer has ended meanwhile."""

    count: int
    #: whose they are: of one control group, or of the whole machine
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
    """Counts from now on what the kernel's killer ends among this process's like.

    A worker is in its runner's control group. That group's counter is of the processes in it (of
    version 2: and below it), whoever's limit was met. One above it counts others' as well, and is
    read only where a container shows no lower one. The machine's is the last resort.

    Args:
        root: of the file system that /proc and /sys are read from; None: the real one.
    """

    def __init__(self, root: Path | None = None) -> None:
        self._counter = _counter(ROOT if root is None else root)
        self._before = self._counter.read() if self._counter else None

    def kills(self) -> OomKills | None:
        """Return what was ended since; None where the kernel does not tell."""
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
