"""What the worker tells, line by line, into a file that outlives it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic_ns
from typing import Any

from kdbench.worker.probes import Probes


class Events:
    """Appends JSON lines to the spool; each is on its way to the disk before the next step.

    The runner turns them into rows. A line that the worker's death cut short is dropped there.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def emit(self, event: str, **values: Any) -> None:  # noqa: ANN401
        """Write one event; `values` must be JSON values (a NaN becomes null)."""
        line = {"event": event, **{key: _json(value) for key, value in values.items()}}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")

    def note(self, text: str) -> None:
        """Tell the user something, in one line; it is in the worker's log as well."""
        sys.stdout.write(f"{text}\n")
        self.emit("note", text=text)

    @contextmanager
    def phase(self, name: str, probes: Probes) -> Iterator[dict[str, Any]]:
        """Mark a phase's start and end with its memory peaks; yields a dict for its own figures."""
        own: dict[str, Any] = {}
        probes.start_phase()
        started = monotonic_ns()
        self.emit("phase_start", phase=name, started_ns=started)
        yield own
        probes.synchronize()
        seconds = (monotonic_ns() - started) / 1e9
        self.emit(
            "phase", phase=name, started_ns=started, seconds=seconds, **own, **probes.phase_peaks()
        )


def _json(value: Any) -> Any:  # noqa: ANN401
    # NaN and infinity have no place in JSON; the loss that is one of them becomes null.
    return None if isinstance(value, float) and not math.isfinite(value) else value
