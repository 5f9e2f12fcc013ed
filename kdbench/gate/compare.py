"""A snapshot against a baseline: one finding for each metric of each cell."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from kdbench.common.errors import did_you_mean
from kdbench.gate.comparability import Comparability, check_comparability
from kdbench.gate.findings import Finding, Outcome, Report
from kdbench.gate.memory_growth import growth
from kdbench.gate.snapshot import Entry, Observed, Snapshot
from kdbench.gate.verdict import ALARM, judge
from kdbench.spec.gated_metrics import (
    GATED_METRICS,
    LOAD,
    GatedMetric,
    Kind,
    Source,
    Tolerance,
    Tolerances,
)

Values = tuple[float, ...]


@dataclass(frozen=True)
class _Pair:
    """One cell, before and now."""

    label: str
    before: Entry
    after: Entry


def compare(before: Snapshot, now: Observed, tolerances: Tolerances, *, baseline: object) -> Report:
    """Compare cell by cell, joined on labels; `baseline` is the path that the report names."""
    known, about = before.entries, now.snapshot.about
    pairs = [
        _Pair(label, known[label], entry)
        for label, entry in now.snapshot.entries.items()
        if label in known
    ]
    found = check_comparability(before.about, about)
    findings = [Finding("failed", label, message=text) for label, text in now.failures.items()]
    if found.whole is not None:
        findings.append(Finding("not-comparable", message=found.whole))
    else:
        findings += _unmatched(before, now)
        findings += _compared(pairs, found, tolerances, about.source)
    notes = [*found.notes, *now.notes]
    if tolerances.switched_off:
        notes.append(f"not compared, by [tolerances]: {', '.join(tolerances.switched_off)}")
    if any(finding.outcome == "improved" for finding in findings):
        notes.append("less than the baseline allows: --update tightens the baseline")
    return Report(
        title=f"{about.title}, against {baseline}",
        matrix=about.matrix,
        baseline=str(baseline),
        labels=tuple(dict.fromkeys([*now.labels, *sorted(known)])),
        findings=findings,
        changed={p.label: changes for p in pairs if (changes := _changed_settings(p))},
        notes=notes,
    )


def _changed_settings(pair: _Pair) -> Mapping[str, tuple[str | None, str | None]]:
    before, after = pair.before.settings, pair.after.settings
    changed = {
        name: (before.get(name), after.get(name))
        for name in {**after, **before}
        if before.get(name) != after.get(name)
    }
    # an id says nothing where the settings behind it do
    return {k: v for k, v in changed.items() if k != "cell_id"} or changed


def _unmatched(before: Snapshot, now: Observed) -> Iterator[Finding]:
    """Report the cells that only one side has: a cell that is not there is not gated."""
    for label in sorted(before.entries):
        if label not in now.labels:
            hint = did_you_mean(label, [x for x in now.labels if x not in before.entries])
            message = "in the baseline, and not there now" + (f"; {hint}" if hint else "")
            yield Finding("not-comparable", label, message=message)
    for label in now.snapshot.entries:
        if label not in before.entries:
            message = "not in the baseline; --update adds it"
            yield Finding("not-comparable", label, message=message)


def _compared(
    pairs: Sequence[_Pair], found: Comparability, tolerances: Tolerances, source: Source
) -> Iterator[Finding]:
    """Compare the metrics of all pairs; what bars a whole kind is reported once."""
    gated = [
        (metric, kind, tolerance)
        for metric in GATED_METRICS.values()
        if (kind := metric.kind(source)) is not None
        and not (tolerance := tolerances.of(metric, kind)).off
    ]
    present = {
        name for pair in pairs for side in (pair.before, pair.after) for name in side.metrics
    }
    kinds = {kind for metric, kind, _ in gated if metric.name in present and kind != "advisory"}
    barred = sorted(kind for kind in kinds if kind in found.reasons)
    for kind in barred:
        yield Finding("not-comparable", message=found.reasons[kind])
    # A gate alarms as a whole: each time's test has its share of the chance.
    alarm = ALARM / (sum("step_seconds" in pair.before.metrics for pair in pairs) or 1)
    for pair in pairs:
        findings = [
            finding
            for metric, kind, tolerance in gated
            if kind not in found.reasons
            if (finding := _find(pair, metric, kind, tolerance, alarm)) is not None
        ]
        for name in sorted(set(pair.before.metrics) - {LOAD, *GATED_METRICS}):
            message = "a figure that this kdbench does not know; --update drops it"
            findings.append(Finding("not-comparable", pair.label, name, message=message))
        yield from findings
        if not barred and all(finding.outcome == "advice" for finding in findings):
            message = "no figure that could be compared"
            yield Finding("not-comparable", pair.label, message=message)


def _find(
    pair: _Pair, metric: GatedMetric, kind: Kind, tolerance: Tolerance, alarm: float
) -> Finding | None:
    """Compare one metric of a cell; None if there is nothing to report."""
    before, after = pair.before.metrics.get(metric.name), pair.after.metrics.get(metric.name)
    if before is None or after is None:
        # every measured step took time, so a time that neither side has is worth a finding
        if kind == "advisory" or (kind != "time" and before is after):
            return None
        return _incomplete(pair.label, metric, before, after)
    if kind == "time":
        return _time(pair, before, after, tolerance, alarm)
    return _size(pair, metric, kind, (before[0], after[0]), tolerance)


def _incomplete(
    label: str, metric: GatedMetric, before: Values | None, after: Values | None
) -> Finding:
    outcome: Outcome = "not-comparable"
    if before is None and after is None:
        outcome, message = "cannot-tell", "neither side has processes that had the machine alone"
    elif before is None:
        message = "not in the baseline; --update adds it"
    else:
        message = "in the baseline, and without a value now"
    old, new = (median(values) if values else None for values in (before, after))
    return Finding(outcome, label, metric.name, old, new, message)


def _time(
    pair: _Pair, before: Values, after: Values, tolerance: Tolerance, alarm: float
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
    return Finding(outcome, pair.label, "step_seconds", median(before), median(after), message)


def _size(
    pair: _Pair, metric: GatedMetric, kind: Kind, values: tuple[float, float], tolerance: Tolerance
) -> Finding | None:
    before, after = values
    parts = growth(pair.before, pair.after, metric.stage)
    close = abs(after - before) <= tolerance.allowed(before)
    outcome: Outcome
    message = ""
    if kind == "advisory":
        if close:
            return None
        outcome, message = "advice", "reported only: no exact figure of measured runs"
    elif close:
        outcome, parts = "held", ()
    elif after < before:
        outcome = "improved"
    else:
        outcome = "regressed"
        if metric.stage is not None and not any(part.change > 0 for part in parts):
            message = "no category grew: it lies in the allocator, or below what a ledger sees"
    return Finding(outcome, pair.label, metric.name, before, after, message, parts)
