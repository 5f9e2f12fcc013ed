"""How much memory this process may still take: under which limit it is the least."""

import re
import resource
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from kdbench.common.system_files import Version, group_folders, read_text

ROOT = Path("/")

# Version 1 writes "no limit" as the largest number of whole pages.
_UNLIMITED = 2**60
# By version: the files of a limit and of what counts against it, and the idle part of that.
_FILES: dict[Version, tuple[str, str, str]] = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}


@dataclass(frozen=True)
class MemoryLimit:
    """A memory limit and how much is free under it."""

    free_bytes: int
    limit_bytes: int
    #: whose limit it is, for messages
    name: str
    #: the least that was ever free under it, if the system reports it
    least_free_bytes: int | None = None


@dataclass(frozen=True)
class ControlGroup:
    """One level of the control groups that this process's memory is counted in."""

    folder: Path
    version: Version
    #: its path below the mount, as far as it can be seen from here
    name: str

    @property
    def limit_bytes(self) -> int | None:
        """What it allows; None: it sets no limit."""
        limit = _number(self.folder / _FILES[self.version][0])
        return None if limit is None or limit >= _UNLIMITED else limit

    @property
    def limit(self) -> MemoryLimit | None:
        """What is free in it; None: it sets no limit.

        File pages that nobody used lately are counted as used, and given up before anybody is
        refused: they are free here, as they are in the system's own figure.
        """
        _, usage, idle = _FILES[self.version]
        limit, used = self.limit_bytes, _number(self.folder / usage)
        if limit is None or used is None:
            return None
        found = re.search(rf"^{idle} (\d+)$", read_text(self.folder / "memory.stat"), re.MULTILINE)
        used -= min(used, int(found[1])) if found else 0
        return MemoryLimit(max(0, limit - used), limit, f"control group {self.name}")


def control_groups(root: Path = ROOT) -> list[ControlGroup]:
    """Find the control groups that count this process's memory, from its own up.

    Any of them may set a limit, and inside a container only the upper ones may be visible.
    """
    return [
        ControlGroup(folder, version, name)
        for folder, version, name in group_folders("memory", root)
        # one without the controller has none of its files, as has the root of version 2
        if any((folder / file).is_file() for file in (*_FILES[version][:2], "memory.events"))
    ]


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """Return the memory that control groups (a container's limit) allow, if they set a limit."""
    limits = (group.limit_bytes for group in control_groups(root))
    return min((limit for limit in limits if limit is not None), default=None)


def find_limits(root: Path = ROOT, *, own: bool = True) -> list[MemoryLimit]:
    """Return what is free under each limit that this process is under; swap is left out.

    With `own`, limits of this very process count as well, not just those that it shares.
    """
    machine = psutil.virtual_memory()
    found = [MemoryLimit(machine.available, machine.total, "the machine's memory")]
    found += [group.limit for group in control_groups(root) if group.limit is not None]
    # Only where the administrator has it so does the system refuse what it has promised already.
    if _number(root / "proc/sys/vm/overcommit_memory") == 2:
        sizes = _sizes(root / "proc/meminfo")
        with suppress(KeyError):
            limit, promised = sizes["CommitLimit"], sizes["Committed_AS"]
            found.append(MemoryLimit(max(0, limit - promised), limit, "vm.overcommit_memory = 2"))
    return [*found, *process_limits(root)] if own else found


def tightest_limit(root: Path = ROOT) -> MemoryLimit:
    """Return the limit under which least is free."""
    return min(find_limits(root), key=lambda limit: limit.free_bytes)


def process_limits(root: Path = ROOT) -> list[MemoryLimit]:
    """Return what `ulimit` has set for this process; only Linux tells what counts against it."""
    if sys.platform != "linux":
        return []
    used, found = _sizes(root / "proc/self/status"), []
    for number, name, now, peak in (
        (resource.RLIMIT_AS, "the process's address space, RLIMIT_AS", "VmSize", "VmPeak"),
        (resource.RLIMIT_DATA, "the process's data, RLIMIT_DATA", "VmData", None),
    ):
        limit = resource.getrlimit(number)[0]
        if limit != resource.RLIM_INFINITY and now in used:
            least = max(0, limit - used[peak]) if peak in used else None
            found.append(MemoryLimit(max(0, limit - used[now]), limit, name, least))
    return found


def _sizes(file: Path) -> dict[str, int]:
    """Read lines such as `VmSize:  3060 kB`, in bytes."""
    lines = re.findall(r"^(\w+):\s*(\d+) kB$", read_text(file), re.MULTILINE)
    return {name: int(size) * 1024 for name, size in lines}


def _number(file: Path) -> int | None:
    try:
        return int(read_text(file))
    except ValueError:  # no such file, or "max": no limit
        return None
