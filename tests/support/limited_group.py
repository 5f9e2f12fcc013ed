"""A real control group with a limit of memory, made in whichever way this machine allows."""

import contextlib
import os
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
# Enters the group and becomes the command: nothing of it runs outside.
ENTER = 'echo $$ > "$0" && exec "$@"'


class CannotLimitError(Exception):
    """Nobody lets us make a group; says what was tried."""


class Group:
    """Commands that are wrapped by it run under the limit."""

    def __init__(self, prefix, folder=None):
        self._prefix, self._folder = prefix, folder

    def command(self, *command):
        """Return the command that runs another one in the group."""
        return [*self._prefix, *map(str, command)]

    def processes(self):
        """Process ids that are in it; None where they cannot be listed."""
        if self._folder is None:
            return None
        return [int(pid) for pid in (self._folder / "cgroup.procs").read_text().split()]

    def remove(self):
        """End what is left in it, and take the group away."""
        if self._folder is None:
            return
        for _ in range(100):
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, 9)
            with contextlib.suppress(OSError):
                self._folder.rmdir()
                return
            time.sleep(0.1)


@contextlib.contextmanager
def limited_group(limit_bytes):
    """Make a group with a limit and without swap.

    Raises:
        CannotLimitError: neither version 1, nor version 2, nor systemd lets us.
    """
    tried = []
    for make in (_version_1, _version_2, _systemd):
        try:
            group = make(limit_bytes)
            subprocess.run(
                group.command("true"), check=True, capture_output=True, text=True, timeout=30
            )
        except (OSError, subprocess.SubprocessError) as error:
            told = getattr(error, "stderr", None) or str(error)
            tried.append(f"{make.__name__.strip('_')}: {told.strip()[:150]}")
            continue
        try:
            yield group
        finally:
            group.remove()
        return
    raise CannotLimitError("; ".join(tried))


def _own(controller):
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controller in controllers.split(","):
            return path.strip("/")
    raise OSError("not in /proc/self/cgroup")


def _entered(folder, values):
    """Make a group, set its limits, and return it; those that a kernel lacks are left out."""
    folder.mkdir()
    group = Group(["sh", "-c", ENTER, str(folder / "cgroup.procs")], folder)
    try:
        for number, (name, value) in enumerate(values.items()):
            if number == 0 or (folder / name).exists():
                (folder / name).write_text(str(value))
        subprocess.run(group.command("true"), check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        group.remove()
        raise
    return group


def _name():
    return f"kdbench-test-{uuid.uuid4().hex[:8]}"


def _version_1(limit):
    values = {
        "memory.limit_in_bytes": limit,
        "memory.memsw.limit_in_bytes": limit,
        "memory.swappiness": 0,
    }
    return _entered(MOUNT / "memory" / _own("memory") / _name(), values)


def _version_2(limit):
    own = MOUNT / _own("")
    if not (MOUNT / "cgroup.controllers").exists():
        raise OSError("not mounted")
    problem = OSError("no group here may have groups with a limit")
    # A group that holds processes may have none with limits below it: beside it, or further up.
    for parent in (own, *own.parents):
        if parent != MOUNT and MOUNT not in parent.parents:
            break
        if "memory" not in (parent / "cgroup.subtree_control").read_text().split():
            continue
        try:
            return _entered(parent / _name(), {"memory.max": limit, "memory.swap.max": 0})
        except (OSError, subprocess.SubprocessError) as error:
            problem = OSError(f"{parent}: {error}")
    raise problem


def _systemd(limit):
    if sys.platform != "linux" or shutil.which("systemd-run") is None:
        raise OSError("no systemd-run")
    manager = [] if os.getuid() == 0 else ["--user"]
    limits = ["-p", f"MemoryMax={limit}", "-p", "MemorySwapMax=0"]
    return Group(["systemd-run", *manager, "--scope", "--quiet", "--collect", *limits, "--"])
