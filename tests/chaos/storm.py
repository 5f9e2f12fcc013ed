"""A sweep under faults, run again and again with the same command until its matrix is complete."""

import subprocess
import sys
import time

import pandas as pd

from tests.chaos.faults import OWN, KillSampler, Suspend
from tests.chaos.invariants import check_complete, check_folder, check_undisturbed
from tests.chaos.ledger import Ledger, Problem
from tests.chaos.sandbox import REPOSITORY, End

# A matrix of a dozen cells is complete long before.
_MOST_RUNS = 150


class Reader:
    """The reader beside a sweep, in a process of its own."""

    def __init__(self, sandbox):
        self._folder, self._pauses = sandbox.apart, 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.reader", str(sandbox.out), str(self._folder)],
            cwd=REPOSITORY, env=sandbox.environment(), stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def pause(self):
        """Have it read nothing from now on; as often as it is paused, it is to be resumed."""
        self._pauses += 1
        (self._folder / "pause").touch()
        while not (self._folder / "paused").exists() and self._process.poll() is None:
            time.sleep(0.02)

    def resume(self):
        self._pauses -= 1
        if self._pauses:
            return
        (self._folder / "pause").unlink()
        while (self._folder / "paused").exists() and self._process.poll() is None:
            time.sleep(0.02)

    def close(self):
        """End it; returns how often it has read, and what it had to say."""
        (self._folder / "stop").touch()
        code = self._process.wait()
        rounds, told = self._folder / "rounds", self._folder / "problems"
        problems = told.read_text().splitlines() if told.exists() else []
        if code:
            problems.append(f"the reader ended with {code}")
        return int(rounds.read_text()) if rounds.exists() else 0, problems


class Storm:
    """One sweep.

    Args:
        sandbox: where it runs.
        deck: deals the faults.
        draw: the source of all chance.
        tally: is told what happens.
    """

    def __init__(self, sandbox, deck, draw, tally):
        self._sandbox, self._deck, self._draw, self._tally = sandbox, deck, draw, tally
        self._unsampled, self._stops = set(), []
        sandbox.ledger = self._ledger = Ledger(sandbox.root)
        sandbox.reader = self._reader = Reader(sandbox)

    def run(self, reference):
        """Drive it until it is complete; `reference` returns the root of an undisturbed run's."""
        complete = False
        try:
            for _ in range(_MOST_RUNS):
                complete = self._round(self._deck.deal(self._sandbox, self._tally.wanted()))
                if complete and not self._deck.wants_rows(self._tally.wanted()):
                    break
        finally:
            rounds, told = self._reader.close()
        self._tally.read(rounds)
        problems = [Problem("reader", line) for line in told]
        if not complete:
            problems.append(Problem("result", f"not complete after {_MOST_RUNS} runs"))
        else:
            root, sweep = self._sandbox.root, self._sandbox.sweep
            problems += check_complete(root, sweep, unsampled=self._unsampled)
            problems += self._unmarked()
            if sweep.compared:
                problems += check_undisturbed(root, reference())
        self._tally.report([], problems)
        self._tally.matrix(sum(status == "ok" for status in self._ledger.statuses.values()))

    def _round(self, faults):
        """Run once, with these faults; whether the matrix is complete."""
        sandbox = self._sandbox
        for fault in faults:
            fault.prepare(sandbox, self._draw)
        run = sandbox.start(
            *(part for fault in faults for part in fault.arguments),
            modules=[path for fault in faults for path in fault.modules],
        )
        met, problems = [], []
        for fault in faults:
            problems += self._ledger.update()
            if run.goes_on and fault.inject(run, self._draw):
                met.append(fault)
        before = self._ledger.statuses
        code = run.wait()
        # What is left there has lost its sampler with its runner: it may become a row, and whole,
        # whose samples end before it did.
        self._unsampled |= {folder.name for folder in (sandbox.root / ".spool").glob("*")}
        orphans = sandbox.orphans()
        problems += [Problem("orphan", line) for line in orphans]
        problems += self._ledger.update()
        end = End(code, run.told(), before, self._ledger.statuses)
        for fault in faults:
            problems += [Problem(fault.name, what) for what in fault.finish(sandbox, end)]
        problems += check_folder(sandbox.root, settled=code in OWN)
        problems += self._ended(end, met)
        for fault in met:
            self._unsampled |= fault.unsampled if isinstance(fault, KillSampler) else set()
            self._stops += fault.stops if isinstance(fault, Suspend) else []
        self._tally.count(faults, met, code)
        self._tally.report(faults, problems)
        return code == 0

    def _ended(self, end, met):
        """Whether the run ended as it should, with these faults."""
        statuses = list(end.after.values())
        whole = len(statuses) == self._sandbox.sweep.runs
        bad = sorted({status for status in statuses if status != "ok"})
        codes = set().union(*(fault.codes for fault in met), ())
        if not codes or codes == OWN or whole:
            codes |= OWN
        if end.code is None:
            yield Problem("hang", "the run did not end")
        elif end.code not in codes:
            yield Problem("exit", f"ended with {end.code}, not one of {sorted(codes)}: {end.told}")
        if end.code in OWN and (not whole or (end.code == 1) != bool(bad)):
            yield Problem("exit", f"ended with {end.code}, {len(statuses)} rows, {bad}: {end.told}")
        may = set().union(*(fault.statuses for fault in met), ())
        if end.code in OWN and not may.issuperset(bad):
            yield Problem("status", f"{bad}, where only {sorted(may)} may be")
        if "Traceback (most recent call last)" in end.told:
            yield Problem("traceback", end.told)

    def _unmarked(self):
        """Timed steps that lay around a stop of their process and do not say so."""
        steps = pd.read_parquet(self._sandbox.root / "steps")
        for began, ended in self._stops:
            inside = steps[
                (steps["started_ns"] < began)
                & (steps["started_ns"] + steps["seconds"] * 1e9 > ended)
                & ~steps["suspended"].fillna(False).astype(bool)
            ]
            for step in inside.to_dict("records"):
                yield Problem("result", f"stopped, and not marked as suspended: {step}")
