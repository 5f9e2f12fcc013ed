"""What may happen to a sweep. A fault says also how a run may end, and its cell, that met it."""

import signal
import time

from kdbench.spec.budget import Budget
from tests.chaos import moments
from tests.chaos.moments import send

# How a run ends by itself: all is well, or a cell is not.
OWN = frozenset({0, 1})
STOPPED = frozenset({130})


class Fault:
    """One kind of fault.

    Attributes:
        name: what it is called and counted as.
        kills: whether it is a SIGKILL.
        holds: it can strike a runner that stands still.
        goes_on: the run survives it, so that others may follow in the same.
        later: it is for a run that finds rows of an earlier one.
        codes: how a run may end that met it.
        statuses: what its cell may come to, beside ok.
    """

    name = ""
    kills = False
    holds = goes_on = later = False
    codes = OWN
    statuses = frozenset()
    arguments = ()
    modules = ()

    def lacks(self, sandbox):
        """Say why it cannot be had here; nothing: it can."""

    def prepare(self, sandbox, draw):
        """Before the run starts."""

    def inject(self, run, draw):
        """Once the run has begun; whether there was anything to meet."""
        try:
            return moments.wait(run, draw, hold=self.holds) and self.strike(run, draw)
        finally:
            if self.holds:
                send(run.pid, signal.SIGCONT)

    def strike(self, run, draw):
        raise NotImplementedError

    def finish(self, sandbox, end):
        """After the run has ended: put things in order, and say what should not be."""
        return []


def send_all(pids, number):
    """To each, whoever is gone; whether any was there."""
    sent = [send(pid, number) for pid in pids]
    return any(sent)


class KillRole(Fault):
    """SIGKILL for one of the run's processes; the run goes on."""

    kills = goes_on = True
    role = ""

    def inject(self, run, draw):
        self.pid = moments.target(run, self.role, draw)
        return self.pid is not None and send(self.pid, signal.SIGKILL)


class KillWorker(KillRole):
    name, role, statuses = "kill-worker", "worker", frozenset({"killed", "oom"})


class KillWarm(KillRole):
    name, role, statuses = "kill-warm", "warm", frozenset({"failed", "killed"})

    def lacks(self, sandbox):
        return None if sandbox.sweep.launch == "fork" else "cells are not forked"


class KillSampler(KillRole):
    """A cell without its samples is a cell all the same."""

    name, role = "kill-sampler", "sampler"

    def __init__(self):
        self.unsampled = set()

    def inject(self, run, draw):
        before = moments.names(run.sandbox.root / ".spool")
        struck = super().inject(run, draw)
        # the run whose spool it wrote to, or the next
        self.unsampled |= before | moments.names(run.sandbox.root / ".spool")
        return struck


class KillRunner(Fault):
    name, codes = "kill-runner", frozenset({-signal.SIGKILL})
    kills = holds = True
    statuses = frozenset({"interrupted"})

    def strike(self, run, draw):
        return send(run.pid, signal.SIGKILL)


class KillRunnerAndWorker(KillRunner):
    name = "kill-runner-and-worker"

    def strike(self, run, draw):
        pids = [run.pid, *run.roles()["worker"]]
        draw.shuffle(pids)
        return send_all(pids, signal.SIGKILL)


class KillAll(KillRunner):
    """As a loss of power, but for the disk's part: nobody sees another one die."""

    name = "kill-all"

    def strike(self, run, draw):
        there = send(run.pid, signal.SIGSTOP)
        for pid in [*run.sandbox.processes(), run.pid]:
            send(pid, signal.SIGKILL)
        return there


class Signalled(Fault):
    """A signal that asks the runner to stop now."""

    codes, statuses, number = STOPPED, frozenset({"interrupted"}), signal.SIGTERM
    holds = True

    def strike(self, run, draw):
        return send(run.pid, self.number)


class Terminate(Signalled):
    name = "terminate"


class HangUp(Signalled):
    name, number = "hang-up", signal.SIGHUP


class TerminateAll(Signalled):
    """As a batch scheduler does, to each process of the job."""

    name = "terminate-all"

    def strike(self, run, draw):
        pids = run.sandbox.processes()
        draw.shuffle(pids)
        return run.goes_on and send_all(pids, self.number)


class Interrupt(Signalled):
    """The first Ctrl-C lets the running cell finish."""

    name, number, statuses = "interrupt", signal.SIGINT, frozenset()

    def finish(self, sandbox, end):
        return [
            f"{key} is interrupted, by one Ctrl-C"
            for key, status in end.after.items()
            if status == "interrupted" != end.before.get(key)
        ]


class InterruptTwice(Signalled):
    """The second does not."""

    name, number = "interrupt-twice", signal.SIGINT

    def strike(self, run, draw):
        there = send(run.pid, self.number)
        run.rest(draw.uniform(0, 0.5))
        send(run.pid, self.number)
        return there


class Suspend(Fault):
    """SIGSTOP for a second; the step in which it lay is told from the others."""

    name, goes_on, seconds = "suspend", True, 1.0

    def __init__(self):
        self.stops = []

    def inject(self, run, draw):
        pid = moments.target(run, "worker", draw)
        if pid is None or not send(pid, signal.SIGSTOP):
            return False
        began = time.monotonic_ns()
        time.sleep(self.seconds)
        self.stops.append((began, time.monotonic_ns()))
        return send(pid, signal.SIGCONT)


class Sabotage(Fault):
    """The method fails from within, in a step of one of its cells."""

    goes_on, way = True, ""

    def strike(self, run, draw):
        work = run.sandbox.work
        order, taken = work / "sabotage", work / "sabotage.taken"
        taken.unlink(missing_ok=True)
        (work / "sabotage.new").write_text(self.way)
        (work / "sabotage.new").replace(order)
        run.until(taken.exists, 600)
        order.unlink(missing_ok=True)
        return taken.exists()


class Exhaust(Sabotage):
    name, way, statuses = "out-of-memory", "exhaust", frozenset({"oom"})


class Hang(Sabotage):
    name, way, statuses = "hang", "hang", frozenset({"timeout"})

    def prepare(self, sandbox, draw):
        seconds = sandbox.sweep.cell_seconds
        if "phase_timeouts" in Budget.model_fields:
            phases = ("warmup", "measure", "account", "train")
            limits = ", ".join(f"{phase} = {seconds + 1:g}" for phase in phases)
            self.arguments = ("--set", f"budget.phase_timeouts={{{limits}}}")
        else:
            self.arguments = ("--set", f"budget.timeout_seconds={5 * seconds + 2:g}")


class HangDeaf(Hang):
    name, way = "hang-deaf", "hang-deaf"


class HangInChild(Hang):
    name, way = "hang-in-child", "hang-in-child"
