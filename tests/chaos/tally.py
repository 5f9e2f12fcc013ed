"""What a storm has done, counted; and what went wrong, with all that it takes to see it again."""

import json
import time
from collections import Counter

# A traceback goes into the report; the log has its end.
_BRIEF = 300


def _brief(text):
    line = " ".join(text.split())
    return line if len(line) <= _BRIEF else f"{line[: _BRIEF // 3]} ... {line[-_BRIEF:]}"


class Tally:
    """Counts.

    Args:
        kills: how many are wanted.
        names: the kinds of faults that are wanted, each at least once.
        log: is told each line.
    """

    # A fault that finds nothing to meet so often is given up, and the storm was not all that it
    # should have been.
    _TRIES = 12

    def __init__(self, kills, names, log):
        self._wanted, self._names, self._log = kills, names, log
        self._started = time.monotonic()
        self._faults, self._missed = Counter(), Counter()
        self._runs = self._matrices = self._cells = self._kills = self._reads = 0
        self._where = ""
        self._problems = []
        self.lacks = {}

    def begin(self, where):
        """From now on all is of this seed and sweep."""
        self._where = where
        self._log(f"{where}: begins; {self._kills} kills so far")

    def wanted(self):
        """Names of the faults that are still to be had."""
        if self._kills < self._wanted:
            return self._names
        return [
            name
            for name in self._names
            if not self._faults[name] and self._missed[name] < self._TRIES
        ]

    def count(self, faults, met, code):
        self._runs += 1
        for fault in faults:
            (self._faults if fault in met else self._missed)[fault.name] += 1
        self._kills += sum(fault.kills for fault in met)
        self._log(
            f"  run {self._runs}: exit {code}; "
            + ", ".join(fault.name + ("" if fault in met else " (missed)") for fault in faults)
        )

    def read(self, rounds):
        self._reads += rounds

    def matrix(self, cells):
        self._matrices += 1
        self._cells += cells

    def report(self, faults, problems):
        for problem in problems:
            names = [fault.name for fault in faults]
            self._log(f"  WRONG ({problem.kind}): {_brief(problem.what)}")
            self._problems.append(
                {
                    "where": self._where,
                    "run": self._runs,
                    "faults": names,
                    "kind": problem.kind,
                    "what": problem.what,
                }
            )

    @property
    def wrong(self):
        return bool(self._problems or self._never_met())

    def _never_met(self):
        """Names of the faults that could be had here, and of which none met a run.

        One that was tried could be had, if only in some of the storms.
        """
        return [
            name
            for name in self._names
            if not self._faults[name] and (self._missed[name] or name not in self.lacks)
        ]

    def result(self):
        """Return all counts."""
        kinds = Counter(problem["kind"] for problem in self._problems)
        return {
            "seconds": round(time.monotonic() - self._started, 1),
            "runs": self._runs,
            "matrices": self._matrices,
            "kills": self._kills,
            "faults": dict(sorted(self._faults.items())),
            "missed": dict(sorted(self._missed.items())),
            "not_to_be_had": {
                name: why for name, why in sorted(self.lacks.items()) if not self._faults[name]
            },
            "never_met": self._never_met(),
            "cells_finished": self._cells,
            "reads": self._reads,
            "rows_lost": kinds["lost"],
            "rows_doubled": kinds["doubled"],
            "orphans": kinds["orphan"],
            "other_problems": len(self._problems)
            - sum(kinds[kind] for kind in ("lost", "doubled", "orphan")),
            "problems": self._problems,
        }

    def print(self):
        """Say it in lines."""
        for name, value in self.result().items():
            if name != "problems":
                shown = json.dumps(value) if isinstance(value, dict) else value
                self._log(f"{name.replace('_', ' ')}: {shown}")
