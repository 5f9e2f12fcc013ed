"""One figure of one cell, before and now: what its difference means."""

from dataclasses import dataclass
from statistics import median

from kdbench.gate.findings import Finding, Outcome
from kdbench.gate.memory_growth import growth
from kdbench.gate.snapshot import Entry
from kdbench.gate.verdict import judge
from kdbench.spec.gated_metrics import LOAD, GatedMetric, Kind, Tolerance


@dataclass(frozen=True)
class Pair:
    """One cell, before and now."""

    label: str
    before: Entry
    after: Entry

    @property
    def sides(self) -> tuple[Entry, Entry]:
        """Both, in order."""
        return self.before, self.after


def find(
    pair: Pair, metric: GatedMetric, kind: Kind, *, tolerance: Tolerance, alarm: float
) -> Finding | None:
    """Compare a figure that one side has, or both; a time also where neither has it.

    `alarm` is the chance of a false alarm, of a time. None: an advisory figure with nothing to say.
    """
    before, after = (side.metrics.get(metric.name) for side in pair.sides)
    if before is None or after is None:
        return None if kind == "advisory" else _incomplete(pair, metric, before, after)
    if kind == "time":
        return _time(pair, before, after, tolerance, alarm)
    if kind == "advisory" and _close(before[0], after[0], tolerance):
        return None
    return _size(pair, metric, kind, (before[0], after[0]), tolerance)


def _incomplete(
    pair: Pair,
    metric: GatedMetric,
    before: tuple[float, ...] | None,
    after: tuple[float, ...] | None,
) -> Finding:
    outcome: Outcome = "not-comparable"
    if before is None and after is None:
        outcome, message = "cannot-tell", "neither side has processes that had the machine alone"
    elif before is None:
        message = "not in the baseline; --update adds it"
    else:
        message = "in the baseline, and without a value now"
    return Finding(
        outcome,
        pair.label,
        metric.name,
        before=median(before) if before else None,
        after=median(after) if after else None,
        message=message,
    )


def _time(
    pair: Pair,
    before: tuple[float, ...],
    after: tuple[float, ...],
    tolerance: Tolerance,
    alarm: float,
) -> Finding:
    outcome: Outcome
    unlike = [
        f"{name} was {old} and is {new}"
        for name in ("mode", "launch")
        if (old := pair.before.settings.get(name)) != (new := pair.after.settings.get(name))
    ]
    if unlike:
        outcome, message = "not-comparable", ", ".join(unlike)
    elif pair.after.settings.get("launch") == "fork":
        outcome = "cannot-tell"
        message = 'forks share what makes processes differ; launch = "spawn" can be tested'
    else:
        loads = (pair.before.metrics.get(LOAD, ()), pair.after.metrics.get(LOAD, ()))
        verdict = judge(before, after, tolerance=tolerance.fraction, alarm=alarm, loads=loads)
        outcome, message = verdict.outcome, verdict.reason
    return Finding(
        outcome, pair.label, "step_seconds", median(before), median(after), message=message
    )


def _size(
    pair: Pair, metric: GatedMetric, kind: Kind, values: tuple[float, float], tolerance: Tolerance
) -> Finding:
    before, after = values
    parts = growth(pair.before, pair.after, metric.stage)
    outcome: Outcome
    message = ""
    if kind == "advisory":
        outcome, message = "advice", "told only: no exact figure of measured runs"
    elif _close(before, after, tolerance):
        outcome, parts = "held", ()
    elif after < before:
        outcome = "improved"
    else:
        outcome = "regressed"
        if metric.stage is not None and not any(part.change > 0 for part in parts):
            message = "no category grew: it lies in the allocator, or below what a ledger sees"
    return Finding(outcome, pair.label, metric.name, before, after, message, parts)


def _close(before: float, after: float, tolerance: Tolerance) -> bool:
    return abs(after - before) <= tolerance.allowed(before)
