"""What the operating system tells of processes' memory, of its peak, and of the load."""

import os
import resource
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

_PAGE_BYTES = resource.getpagesize()
# Listing children costs a hundred times what one reading does.
_CHILDREN_EVERY_NS = 1_000_000_000


class ResidentMemory:
    """Resident memory of a process and its children, read often.

    A page that several of them share counts once for each: the sum is what each would need alone.
    """

    def __init__(self, pid: int, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._listed_ns: int | None = None
        self._children: list[psutil.Process] = []
        self._process = _process(pid)
        self._resident = _Resident(self._process) if self._process else None

    @property
    def children(self) -> list[int]:
        """The children's process ids, as last listed."""
        return [child.pid for child in self._children]

    def read(self) -> int | None:
        """Return bytes; None once the process has ended. New children show within a second."""
        if self._process is None:
            return None
        now = self._clock()
        if self._listed_ns is None or now - self._listed_ns >= _CHILDREN_EVERY_NS:
            self._listed_ns = now
            self._list_children(self._process)
        own = self._resident.read() if self._process and self._resident else None
        if not own:
            # Ended; 0 until it is waited for. Its number may then go to another process, whose
            # memory is not ours to report.
            self._process, self._resident, self._children = None, None, []
            return None
        return own + sum(_resident(child) or 0 for child in self._children)

    def _list_children(self, process: psutil.Process) -> None:
        try:
            if not process.is_running():
                self._process = None
                return
            pids = _descendants(process.pid)
            known = {child.pid: child for child in self._children if child.is_running()}
            self._children = (
                process.children(recursive=True)
                if pids is None
                else [child for pid in pids if (child := known.get(pid) or _process(pid))]
            )
        except psutil.Error:
            self._children = []


def can_reset_peak() -> bool:
    """Whether the kernel's high-water mark of resident memory (VmHWM) can be set back.

    Linux only, and some sandboxes lack it. Tries it on this process: harmless, but its own mark
    starts anew.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        return "VmHWM:" in Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return False


class _Resident:
    """Reads one process's resident memory from a file that is kept open, where there is one.

    Opening it anew at each sample costs four times as much, and the sampler's processor time is
    the worker's. The open file stays that process's: its number may go to another, this does not.
    """

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._file: int | None = None
        with suppress(OSError):
            self._file = os.open(f"/proc/{process.pid}/statm", os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, self._file)

    def read(self) -> int | None:
        """Return bytes; 0 or None once the process has ended."""
        if self._file is None:
            return _resident(self._process)
        try:
            return int(os.pread(self._file, 256, 0).split()[1]) * _PAGE_BYTES
        except (OSError, IndexError):
            return None


def _resident(process: psutil.Process) -> int | None:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return None


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def _descendants(pid: int) -> list[int] | None:
    """Find all below a process by the kernel's own lists; None where it keeps none.

    psutil looks through every process of the machine, which takes longer than a sampling interval
    on a shared server.
    """
    found: list[int] = []
    waiting = [pid]
    while waiting:
        try:
            tasks = list(Path(f"/proc/{waiting.pop()}/task").iterdir())
        except OSError:
            if not found and not waiting:
                return None
            continue
        for task in tasks:
            try:
                children = (task / "children").read_text(encoding="utf-8").split()
            except FileNotFoundError:
                if task.exists():  # a kernel without these lists
                    return None
                continue
            except OSError:
                continue
            found += map(int, children)
            waiting += map(int, children)
    return found


def load_average() -> float | None:
    """Return the mean number of processes that ran or waited to run over the last minute."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def busy_note() -> str | None:
    """Say that others keep the processors busy, if they do: a step may then take any time."""
    load, processors = load_average(), os.cpu_count() or 1
    if load is None or load < 0.5 * processors:
        return None
    return (
        f"this machine was busy just now (load {load:.1f} on {processors} processors): beside "
        "another job, times can come out many times too long; memory is not affected"
    )
