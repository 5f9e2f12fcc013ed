"""Faults of what is around a run: its disk, its clock, another run in its folder."""

import os
import resource
import subprocess
from contextlib import suppress
from pathlib import Path

import psutil

from tests.chaos.faults import OWN, Fault

UNWRITABLE = OWN | {2}
# Room for a sweep, and for what was set aside of it.
DISK_BYTES = 64 << 20
_BALLAST = "ballast"
# Less than a part or a worker's events take, and enough to say so on the error output.
_SMALL = (4096, resource.RLIM_INFINITY)


def mount_disk(folder):
    """Have a small disk on a folder; whether that is allowed here."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(folder)]
    with suppress(OSError):
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    return False


def unmount_disk(folder):
    subprocess.run(["umount", "--lazy", str(folder)], capture_output=True, check=False)


class Unwritable(Fault):
    """Where nothing can be written a run ends with one line, or was done before."""

    codes, statuses, holds = UNWRITABLE, frozenset({"failed", "interrupted"}), True

    def finish(self, sandbox, end):
        lines = [line for line in end.told.splitlines() if line.startswith("kdbench: ")]
        if end.code == 2 and len(lines) != 1:
            return [f"{len(lines)} lines of the error, not one: {lines}"]
        return []


class FullDisk(Unwritable):
    """On a disk of its own; where none can be had, a limit of each file's size stands in."""

    name = "disk-full"

    def strike(self, run, draw):
        if run.sandbox.out.is_mount():
            _fill(run.sandbox.out / _BALLAST)
        else:
            for pid in run.sandbox.processes():
                with suppress(psutil.Error):
                    psutil.Process(pid).rlimit(resource.RLIMIT_FSIZE, _SMALL)
        return run.goes_on

    def finish(self, sandbox, end):
        (sandbox.out / _BALLAST).unlink(missing_ok=True)
        return super().finish(sandbox, end)


def _fill(path):
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"\0" * (1 << 20)):
            pass
    with suppress(OSError), path.open("ab", buffering=0) as file:
        while file.write(b"\0"):
            pass


class ReadOnly(Unwritable):
    """The folders' modes are changed: a disk that is written to is not mounted anew."""

    name = "read-only"

    def lacks(self, sandbox):
        return "modes bind nobody here" if sandbox.held_to_modes is None else None

    def strike(self, run, draw):
        _set_modes(run.sandbox.root, 0o555)
        return run.goes_on

    def finish(self, sandbox, end):
        _set_modes(sandbox.root, 0o755)
        return super().finish(sandbox, end)


class ReadOnlyFromTheStart(Unwritable):
    """A disk that is mounted to be read alone."""

    name, codes = "read-only-disk", frozenset({2})

    def lacks(self, sandbox):
        return None if sandbox.out.is_mount() else "no disk can be mounted here"

    def prepare(self, sandbox, draw):
        _remount(sandbox.out, "ro")

    def inject(self, run, draw):
        return True

    def finish(self, sandbox, end):
        _remount(sandbox.out, "rw")
        return super().finish(sandbox, end)


def _remount(folder, how):
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def _set_modes(root, mode):
    # inwards when they open, outwards when they close: a folder must be entered to be changed
    for folder, _, _ in os.walk(root, topdown=mode & 0o200):
        with suppress(FileNotFoundError):
            Path(folder).chmod(mode)


class SecondRun(Fault):
    """Another run in the same folder is told so, and disturbs nothing."""

    name, goes_on = "second-run", True

    def __init__(self):
        self._told = []

    def strike(self, run, draw):
        sandbox = run.sandbox
        second = sandbox.start()
        code, told = second.wait(), second.told()
        wanted = "another run is writing here"
        lines = told.splitlines()
        if code == 2 and len(lines) == 1 and wanted in lines[0]:
            return True
        if run.goes_on:
            self._told.append(f"the second run ended with {code}: {told}")
        return False

    def finish(self, sandbox, end):
        told, self._told = self._told, []
        return told


# Compiled libraries know the size of the real class: only kdbench's own modules see another.
_CLOCK = """
import datetime, importlib.machinery, sys, time

left = {calls}
real, real_ns, now = time.time, time.time_ns, datetime.datetime.now

def late():
    global left
    left -= 1
    return 3600 if left < 0 else 0

class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return now(tz) - datetime.timedelta(seconds=late())

class Finder(importlib.machinery.PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        spec = super().find_spec(name, path, target) if name.startswith("kdbench") else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def and_replace(module):
                execute(module)
                if getattr(module, "datetime", None) is datetime.datetime:
                    module.datetime = Clock

            spec.loader.exec_module = and_replace
        return spec

if sys.orig_argv[1:4] == ["-m", "kdbench", "run"]:
    time.time, time.time_ns = lambda: real() - late(), lambda: real_ns() - late() * 10**9
    sys.meta_path.insert(0, Finder)
"""


class ClockBack(Fault):
    """The runner's clock is set back by an hour, in a call of it."""

    name, goes_on = "clock-back", True

    def prepare(self, sandbox, draw):
        folder = sandbox.apart / "clock"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(_CLOCK.format(calls=draw.randrange(30)))
        self.modules = (folder,)

    def inject(self, run, draw):
        return True
