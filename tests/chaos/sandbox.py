"""A folder of a sweep's own, the command that runs it there, and all of its processes."""

import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).parents[2]
# No run takes so long, one that has to be killed in three steps included.
LONG = 180
# What a run leaves may take a moment to end; an orphan never does.
GRACE_SECONDS = 10
RETRIED = "killed,failed,oom,timeout"
# Without these a superuser is held to a folder's mode as everyone is.
_HELD_TO_MODES = ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


class Sandbox:
    """Where one sweep lives.

    Attributes:
        sweep: what is run.
        work: the working folder, by which the sweep's processes are found.
        out, root: the results, and those of the matrix in them.
        apart: for what is no process of the sweep.
    """

    def __init__(self, folder, sweep):
        self.sweep = sweep
        self.work, self.apart = folder / "work", folder / "apart"
        self.out = self.work / "out"
        self.root = self.out / "tiny"
        self.plugin = folder / "plugin"
        for path in (self.out, self.apart):
            path.mkdir(parents=True)
        (self.work / "tiny.toml").write_text(sweep.text)
        self._install_method()
        self.held_to_modes = _held_to_modes(self.apart)

    def _install_method(self):
        info = self.plugin / "sabotaged-1.dist-info"
        info.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("sabotaged.py"), self.plugin)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sabotaged\nVersion: 1\n")
        (info / "entry_points.txt").write_text("[kdbench.methods]\nsabotaged = sabotaged:ALONE\n")

    def environment(self, first=()):
        """The sweep's environment; `first` come before all on the path of modules."""
        paths = [*first, self.plugin, REPOSITORY]
        return {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(path) for path in paths),
            "KDBENCH_CACHE": str(self.work / "cache"),
            "HF_HOME": str(self.work / "hf"),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",
        }

    def command(self, *more, out=None):
        return [
            *(self.held_to_modes or ()),
            *(sys.executable, "-m", "kdbench", "run", "--matrix", "tiny.toml", "--device", "cpu"),
            *("--out", str(out or self.out), "--retry", RETRIED, *more),
        ]

    def start(self, *more, out=None, modules=()):
        return Run(self, self.command(*more, out=out), self.environment(modules))

    def ask(self, *arguments):
        """Run another command of kdbench to its end, from apart."""
        return subprocess.run(
            [sys.executable, "-m", "kdbench", *map(str, arguments)],
            cwd=self.apart, env=self.environment(), capture_output=True, text=True, check=False,
            stdin=subprocess.DEVNULL, timeout=LONG,
        )  # fmt: skip

    def processes(self):
        """All that live with this working folder, by their ids; who has ended has none."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with suppress(OSError):
                    if (entry / "cwd").readlink() == self.work:
                        found[int(entry.name)] = entry
        return sorted(found)

    def orphans(self):
        """Command lines of what still lives when all should have ended; they are ended now."""
        deadline = time.monotonic() + GRACE_SECONDS
        while (left := self.processes()) and time.monotonic() < deadline:
            time.sleep(0.02)
        lines = []
        for pid in left:
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                lines.append(f"{pid}: {' '.join(process.cmdline())}")
                process.kill()
        return lines


class Run:
    """A `kdbench run` that goes on."""

    def __init__(self, sandbox, command, environment):
        self.sandbox = sandbox
        self._told = sandbox.apart / f"stderr.{time.monotonic_ns()}"
        with self._told.open("wb") as told:
            self._process = subprocess.Popen(
                command, cwd=sandbox.work, env=environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL, stderr=told, start_new_session=True,
            )  # fmt: skip

    @property
    def pid(self):
        return self._process.pid

    @property
    def goes_on(self):
        return self._process.poll() is None

    def writes(self):
        """Whether it is the one that writes here."""
        with suppress(OSError):
            return (self.sandbox.root / ".lock").read_text() == str(self.pid)
        return False

    def until(self, condition, seconds, *, every=0.02):
        """Wait for it; whether it came true while the run went on."""
        deadline = time.monotonic() + seconds
        while self.goes_on and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(every)
        return False

    def rest(self, seconds):
        """Let the run go on for so long, or to its end."""
        self.until(lambda: False, seconds, every=min(seconds, 0.01))

    def wait(self):
        """The exit status; None if it had to be killed, as it did not end."""
        try:
            return self._process.wait(LONG)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            return None

    def told(self):
        """All that it said on its error output."""
        return self._told.read_text(errors="replace")

    def roles(self):
        """The ids of its processes by what they are: worker, sampler, warm."""
        found = {"worker": [], "sampler": [], "warm": []}
        for pid in self.sandbox.processes():
            with suppress(psutil.Error):
                process = psutil.Process(pid)
                role = _role(process, self.pid)
                if role is not None:
                    found[role].append(pid)
        return found


def _role(process, runner):
    command, parent = process.cmdline(), process.ppid()
    if "kdbench.runner.telemetry.sampler" in command:
        return "sampler"
    if "kdbench.worker" in command and parent == runner:
        return "worker"
    if "kdbench.worker.forker" in command:
        if parent == runner:
            return "warm"
        # not what the worker itself has started
        return "worker" if psutil.Process(parent).ppid() == runner else None
    return None


def _held_to_modes(folder):
    """What a command is begun with so that it cannot write where a mode forbids; None: no way."""
    closed = folder / "closed"
    closed.mkdir(mode=0o555)
    for prefix in ((), _HELD_TO_MODES):
        script = f"open({str(closed / 'file')!r}, 'w')"
        with suppress(OSError):
            tried = subprocess.run(
                [*prefix, sys.executable, "-c", script], capture_output=True, check=False
            )
            if b"PermissionError" in tried.stderr:
                return prefix
        (closed / "file").unlink(missing_ok=True)
    return None


@dataclass(frozen=True)
class End:
    """How a run ended, and the statuses of its rows before the fault and after the end."""

    code: int | None
    told: str
    before: dict
    after: dict
