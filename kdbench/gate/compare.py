"""What is now against a baseline: one finding for each figure of each cell."""

from collections.abc import Iterator, Mapping, Sequence

from kdbench.common.errors import did_you_mean
from kdbench.gate.comparability import Comparability, check_comparability
from kdbench.gate.compare_metric import Pair, find
from kdbench.gate.findings import Finding, Report
from kdbench.gate.snapshot import Observed, Snapshot
from kdbench.gate.verdict import ALARM
from kdbench.spec.gated_metrics import (
    GATED_METRICS,
    LOAD,
    GatedMetric,
    Kind,
    Source,
    Tolerance,
    Tolerances,
)


def compare(before: Snapshot, now: Observed, tolerances: Tolerances, *, baseline: object) -> Report:
    """Compare cell by cell, joined on labels; `baseline` is the path that the report names."""
    known = before.entries
    pairs = [
        Pair(label, known[label], entry)
        for label, entry in now.snapshot.entries.items()
        if label in known
    ]
    found = check_comparability(before.about, now.snapshot.about)
    findings = [Finding("failed", label, message=text) for label, text in now.failures.items()]
    if found.whole is not None:
        findings.append(Finding("not-comparable", message=found.whole))
    else:
        findings += _unmatched(before, now)
        findings += _compared(pairs, found, tolerances, now.snapshot.about.source)
    notes = [*found.notes, *now.notes]
    if tolerances.switched_off:
        notes.append(f"not compared, by [tolerances]: {', '.join(tolerances.switched_off)}")
    if any(finding.outcome == "improved" for finding in findings):
        notes.append("less than the baseline allows: --update tightens the baseline")
    return Report(
        title=f"{now.snapshot.about.title}, against {baseline}",
        matrix=now.snapshot.about.matrix,
        baseline=str(baseline),
        labels=tuple(dict.fromkeys([*now.labels, *sorted(known)])),
        findings=findings,
        changed={p.label: changes for p in pairs if (changes := _changed_settings(p))},
        notes=notes,
    )


def _changed_settings(pair: Pair) -> Mapping[str, tuple[str | None, str | None]]:
    before, after = pair.before.settings, pair.after.settings
    changed = {
        name: (before.get(name), after.get(name))
        for name in (*after, *(name for name in before if name not in after))
        if before.get(name) != after.get(name)
    }
    # an id says nothing where the settings behind it do
    return {k: v for k, v in changed.items() if k != "cell_id"} or changed


def _unmatched(before: Snapshot, now: Observed) -> Iterator[Finding]:
    """Tell of the cells that one side has alone: what is not there is not gated."""
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
    pairs: Sequence[Pair], found: Comparability, tolerances: Tolerances, source: Source
) -> Iterator[Finding]:
    """Compare the figures of all pairs; what bars a whole kind is told once."""
    looked = [
        (metric, kind, tolerances.of(metric, kind))
        for metric in GATED_METRICS.values()
        if (kind := metric.kind(source)) is not None and not tolerances.of(metric, kind).off
    ]
    there = {name for pair in pairs for side in pair.sides for name in side.metrics}
    kinds = {kind for metric, kind, _ in looked if metric.name in there and kind != "advisory"}
    barred = sorted(kind for kind in kinds if kind in found.reasons)
    for kind in barred:
        yield Finding("not-comparable", message=found.reasons[kind])
    free = [(metric, kind, of) for metric, kind, of in looked if kind not in found.reasons]
    # A gate alarms as a whole: each time's test has its share of the chance.
    timed = sum("step_seconds" in pair.before.metrics for pair in pairs) or 1
    for pair in pairs:
        findings = [*_known(pair, free, ALARM / timed), *_unknown(pair)]
        yield from findings
        if not barred and all(finding.outcome == "advice" for finding in findings):
            message = "no figure that could be compared"
            yield Finding("not-comparable", pair.label, message=message)


def _known(
    pair: Pair, looked: Sequence[tuple[GatedMetric, Kind, Tolerance]], alarm: float
) -> Iterator[Finding]:
    for metric, kind, tolerance in looked:
        # a measured step took its time, so that none that can be used is something to tell
        if kind == "time" or any(metric.name in side.metrics for side in pair.sides):
            found = find(pair, metric, kind, tolerance=tolerance, alarm=alarm)
            if found is not None:
                yield found


def _unknown(pair: Pair) -> Iterator[Finding]:
    for name in sorted(set(pair.before.metrics) - {LOAD, *GATED_METRICS}):
        message = "a figure that this kdbench does not know; --update drops it"
        yield Finding("not-comparable", pair.label, name, message=message)
