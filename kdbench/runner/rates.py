"""The highest rates of the device, in computing and copying, that the cells of a run measured."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdbench.runner.telemetry.contention import judge_contention
from kdbench.runner.telemetry.windows import Sample

Rates = dict[str, Any]
# Each try takes a second or two of a cell; on a machine that is always busy, more do not help.
_MAX_TRIES = 3
_NAMES = ("matmul_flops_per_second", "copy_bytes_per_second")


class BestRates:
    """The rates by precision: a measured rate is never too high, so the highest is kept."""

    def __init__(self) -> None:
        self._found: dict[str, Rates] = {}
        self._tries: dict[str, int] = {}

    def wanted(self, precision: str) -> bool:
        """Whether the next cell should measure: until once undisturbed, at most three times."""
        tries = self._tries.get(precision, 0)
        return tries == 0 or (tries < _MAX_TRIES and not _is_sure(self._found.get(precision, {})))

    def add(self, precision: str, rates: Rates) -> None:
        """Add a cell's rates; empty if it could not measure them."""
        self._tries[precision] = self._tries.get(precision, 0) + 1
        if not rates:
            return
        known = self._found.get(precision, {})
        marks = rates if _is_sure(rates) or not known else known
        best = {name: max(rates[name], known.get(name, 0.0)) for name in _NAMES}
        self._found[precision] = {**marks, **best}

    def of(self, precision: str) -> Rates:
        """Return the highest rates; empty if none were measured."""
        return self._found.get(precision, {})


def reported_rates(
    events: Mapping[str, Sequence[Mapping[str, Any]]], samples: Sequence[Sample], device: str
) -> Rates:
    """Return the rates that a worker reported, and whether others disturbed them."""
    rates = next(iter(events.get("rates", [])), None)
    if rates is None:
        return {}
    phases = [phase for phase in events.get("phase", []) if phase["phase"] == "rates"]
    windows = [(p["started_ns"], p["started_ns"] + int(p["seconds"] * 1e9)) for p in phases]
    threads = next((event["threads"] for event in events.get("started", [])), None)
    found = judge_contention(
        samples, windows, threads=threads if device == "cpu" else threads and 1
    )
    return {**rates, "rates_contended": found.contended}


def _is_sure(rates: Mapping[str, Any]) -> bool:
    return bool(rates.get("rates_steady")) and not rates.get("rates_contended")
