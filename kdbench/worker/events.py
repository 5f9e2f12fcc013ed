"""What the worker reports, line by line, into a file that outlives it."""

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic_ns
from typing import Any

from kdbench.worker.probes.memory import Probes
from kdbench.worker.probes.suspension import SuspensionDetector
from kdbench.worker.secrets import SECRETS

#: Events that become rows of their own. Those of a set-up are not among them: a resumed training
#: sets up again, and emits them anew.
REPLAYED = ("phase_start", "phase", "step", "epoch")


class Events:
    """Appends JSON lines to the spool; each is on its way to the disk before the next step.

    The runner turns them into rows. A line that the worker's death cut short is dropped there.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)
        #: counts the processes that a training has gone through; every event has it
        self.attempt = 0
        #: lines that a resumed training will need again, for whoever keeps them; None: nobody does
        self.kept: list[str] | None = None

    def emit(self, event: str, **values: Any) -> None:
        """Write one event; `values` must be JSON values (a NaN becomes null)."""
        safe = {key: _json(value) for key, value in values.items()}
        line = {"event": event, "attempt": self.attempt, **safe}
        text = json.dumps(line, allow_nan=False) + "\n"
        self._file.write(text)
        if self.kept is not None and event in REPLAYED:
            self.kept.append(text)

    def note(self, text: str) -> None:
        """Give the user a note of one line, which goes to the log as well."""
        line = " ".join(text.split())
        sys.stderr.write(line + "\n")
        self.emit("note", text=line)

    def replay(self, lines: bytes) -> None:
        """Write the lines of earlier attempts again, as they were."""
        self._file.write(lines.decode())

    @contextmanager
    def phase(self, name: str, probes: Probes) -> Iterator[dict[str, Any]]:
        """Mark a phase's start and end with its memory peaks; yields a dict for its own figures."""
        own: dict[str, Any] = {}
        probes.start_phase()
        suspension = SuspensionDetector()
        started = monotonic_ns()
        self.emit("phase_start", phase=name, started_ns=started)
        yield own
        probes.synchronize()
        seconds = (monotonic_ns() - started) / 1e9
        own = {"seconds": seconds, "suspended": suspension.occurred(), **own}
        self.emit("phase", phase=name, started_ns=started, **own, **probes.phase_peaks())


def _json(value: Any) -> Any:
    if isinstance(value, str):  # such as an error of the hub's library
        return SECRETS.left_out(value)
    # NaN and infinity have no place in JSON; the loss that is one of them becomes null.
    return None if isinstance(value, float) and not math.isfinite(value) else value
