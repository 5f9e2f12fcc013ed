"""What the device reaches at best, as a run keeps it: the best of what its cells measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdbench.runner.telemetry.contention import judge
from kdbench.runner.telemetry.windows import Sample

Rates = dict[str, Any]
# Each try takes a second or two of a cell: on a machine that never rests, more would be no better.
_MOST_TRIES = 3
_NAMES = ("matmul_flops_per_second", "copy_bytes_per_second")


class BestRates:
    """The rates by precision. A rate is only ever measured too low, so the best one is kept."""

    def __init__(self) -> None:
        self._found: dict[str, Rates] = {}
        self._tries: dict[str, int] = {}

    def wanted(self, precision: str) -> bool:
        """Whether the next cell is to measure: until it was done undisturbed, or a few times."""
        tries = self._tries.get(precision, 0)
        return tries == 0 or (tries < _MOST_TRIES and not _is_sure(self._found.get(precision, {})))

    def add(self, precision: str, told: Rates) -> None:
        """Take in what a cell was asked to measure; empty where it could not."""
        self._tries[precision] = self._tries.get(precision, 0) + 1
        if not told:
            return
        known = self._found.get(precision, {})
        marks = told if _is_sure(told) or not known else known
        best = {name: max(told[name], known.get(name, 0.0)) for name in _NAMES}
        self._found[precision] = {**marks, **best}

    def of(self, precision: str) -> Rates:
        """Return the best ones; empty where none were measured."""
        return self._found.get(precision, {})


def reported_rates(
    events: Mapping[str, Sequence[Mapping[str, Any]]], samples: Sequence[Sample], device: str
) -> Rates:
    """Return the rates that a worker told, and whether others were at work meanwhile.

    Args:
        events: of the worker, by kind.
        samples: of the cell's whole life.
        device: where it ran.

    Returns:
        The columns of `cells`; empty where it told none.
    """
    told = next(iter(events.get("rates", [])), None)
    if told is None:
        return {}
    phases = [phase for phase in events.get("phase", []) if phase["phase"] == "rates"]
    windows = [(p["started_ns"], p["started_ns"] + int(p["seconds"] * 1e9)) for p in phases]
    threads = next((event["threads"] for event in events.get("started", [])), None)
    found = judge(samples, windows, threads=threads if device == "cpu" else threads and 1)
    return {**told, "rates_contended": found.contended}


def _is_sure(rates: Mapping[str, Any]) -> bool:
    return bool(rates.get("rates_steady")) and not rates.get("rates_contended")
