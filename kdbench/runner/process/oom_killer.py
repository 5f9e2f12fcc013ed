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


class OomKillCounter:
    """Counts the kernel's kills from now on.

    A worker is in its runner's control group, whose counter covers its processes (in version 2
    also those of the groups below it). A group above it counts others' processes too, and is used
    only where a container shows no lower one; the machine's counter is the last resort.
    """

    def __init__(self, root: Path | None = None) -> None:
        root = ROOT if root is None else root
        names = {2: "memory.events", 1: "memory.oom_control"}
        counters = [
            (group.folder / names[group.version], f"control group {group.name}")
            for group in control_groups(root)
        ]
        for file, where in (*counters, (root / "proc/vmstat", "the whole machine")):
            self._file, self._where = file, where
            self._before = self._count()
            if self._before is not None:
                break

    def kills(self) -> OomKills | None:
        """Return the kills since the start; None where the kernel does not count them."""
        now = self._count()
        if self._before is None or now is None:
            return None
        return OomKills(max(0, now - self._before), self._where)

    def _count(self) -> int | None:
        try:
            found = _COUNT.search(self._file.read_text(encoding="utf-8"))
        except OSError:
            return None
        return int(found[1]) if found else None
