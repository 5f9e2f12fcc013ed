"""A snapshot of measured results, or of predictions."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from kdbench.analysis.aggregate import CellGroup, group_cells
from kdbench.analysis.environments import Environment, list_environments
from kdbench.analysis.estimates import is_number
from kdbench.analysis.results import Results, plain_rows
from kdbench.common.errors import InputError, quoted
from kdbench.gate import snapshot
from kdbench.spec.gated_metrics import GATED_METRICS, LOAD, Source
from kdbench.store.schema import SCHEMA_VERSION

Row = Mapping[str, Any]


def observe_predictions(cells: Sequence[Mapping[str, Sequence[Row]]]) -> snapshot.Observed:
    """Take the rows of predicted cells, by table, of one matrix and one profile."""
    rows = [tables["cells"][0] for tables in cells]
    first = next((row for row in rows if row["status"] == "ok"), rows[0])
    about = snapshot.About(
        matrix=first["matrix"],
        source="predicted",
        schema_version=SCHEMA_VERSION,
        torch_version=first["torch_version"],
        profile=first["profile"],
        profile_digest=json.loads(first["environment"]).get("profile_digest"),
    )
    entries, failures = {}, {}
    for row, tables in zip(rows, cells, strict=True):
        if row["status"] == "ok":
            memory = _memory(tables.get("memory", ()))
            entries[row["label"]] = snapshot.Entry(
                _settings(row), dict(_figures([row], "predicted")), memory
            )
        else:
            failures[row["label"]] = f"{row['status']}: {row['error'] or 'no reason given'}"
    caveats = [
        (row["label"], row["caveats"])
        for row in rows
        if row["status"] == "ok" and row.get("caveats")
    ]
    notes = [f"outside of what was verified, {text}: {of}" for of, text in _folded(caveats)]
    return snapshot.Observed(snapshot.Snapshot(about, entries), failures, notes)


def observe_results(
    results: Results,
    *,
    where: object,
    matrix: str | None = None,
    like: snapshot.About | None = None,
) -> snapshot.Observed:
    """Take the measured runs of one matrix and one environment.

    `matrix` and `like` choose where there are several; raises InputError if they do not, or if
    nothing was measured.
    """
    cells = results.cells[results.cells["source"] == "measured"]
    if cells.empty:
        hint = "kdbench run measures; --matrix without a folder predicts"
        raise InputError("no measured runs here", where=where, hint=hint)
    sheet = _one_environment(_one_matrix(replace(results, cells=cells), matrix, where), like)
    (environment,) = sheet.environments()
    about = snapshot.About(
        matrix=sheet.matrices[0],
        source="measured",
        schema_version=SCHEMA_VERSION,
        **{name: getattr(environment, name) for name in snapshot.MACHINE},
    )
    groups = _latest(group_cells(sheet))
    counted = {run.run_key for group in groups for run in group.members if run.status == "ok"}
    rows = {row["run_key"]: row for row in sheet.records()}
    memory = _memory_by_run(sheet, counted)
    entries, failures = {}, {}
    remarks: list[tuple[str, str]] = []
    for group in groups:
        own = sorted(
            (rows[run.run_key] for run in group.members if run.status == "ok"),
            key=lambda row: (row["seed"], row["repeat"]),
        )
        if own:
            parts = next((memory[r["run_key"]] for r in own if r["run_key"] in memory), {})
            figures = dict(_figures(own, "measured"))
            entries[group.label] = snapshot.Entry(_settings(group.settings), figures, parts)
            remarks += ((group.label, text) for text in _remarks(own))
        if group.problems:
            failures[group.label] = _failure(group)
    notes = [f"{of}: {text}" for of, text in _folded(remarks)]
    return snapshot.Observed(snapshot.Snapshot(about, entries), failures, notes)


def _one_matrix(results: Results, wanted: str | None, where: object) -> Results:
    names = results.matrices
    if len(names) > 1 and wanted not in names:
        raise InputError(
            f"results of several matrices: {quoted(names)}", where=where, hint="name one's folder"
        )
    name = wanted if wanted in names else names[0]
    return replace(results, cells=results.cells[results.cells["matrix"] == name])


def _one_environment(results: Results, like: snapshot.About | None) -> Results:
    found = results.environments()
    if len(found) > 1 and like is not None:
        found = [e for e in found if _machine(e) == _machine(like)] or found
    if len(found) > 1:
        raise InputError(
            f"results of several environments: {list_environments(found)}",
            where="--environment",
            hint="name one",
        )
    return replace(results, cells=results.cells[results.cells["environment_id"] == found[0].id])


def _machine(of: Environment | snapshot.About) -> tuple[object, ...]:
    return tuple(getattr(of, name) for name in snapshot.MACHINE)


def _latest(groups: Iterable[CellGroup]) -> list[CellGroup]:
    """Keep the cell that ran last under each label: its settings may have changed between runs."""
    kept: dict[str, CellGroup] = {}
    for group in groups:
        before = kept.get(group.label)
        if before is None or before.started[1] < group.started[1]:
            kept[group.label] = group
    return list(kept.values())


def _settings(row: Row) -> dict[str, str | None]:
    return {name: snapshot.as_text(row[name]) for name in snapshot.SETTINGS}


def _figures(rows: Sequence[Row], source: Source) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Yield each figure of a cell that there is, from its runs that finished.

    Of what should be the same in each run, and of peaks that were sampled, the highest counts.
    """
    for metric in GATED_METRICS.values():
        kind = metric.kind(source)
        # a time is too long where others used the processors
        usable = [row for row in rows if kind != "time" or row["contended"] is not True]
        values = [row[metric.column] for row in usable if is_number(row.get(metric.column))]
        if kind == "time":
            values = [float(value) for value in values if value > 0]
            loads = [float(row[LOAD]) for row in usable if is_number(row.get(LOAD))]
            if values and loads:
                yield LOAD, tuple(loads)
        elif kind is not None:
            values = [max(map(_plain, values))] if values else []
        if kind is not None and values:
            yield metric.name, tuple(values)


def _plain(value: float) -> float:
    """Write a count that is kept as a float as the integer that it is."""
    return int(value) if abs(value) < 2**53 and float(value).is_integer() else value


def _memory(rows: Iterable[Row]) -> snapshot.Memory:
    parts: dict[tuple[str, str | None], dict[str, int]] = {}
    for row in rows:
        stages = parts.setdefault((row["category"], row["module"]), {})
        stages[row["stage"]] = stages.get(row["stage"], 0) + row["bytes"]
    return parts


def _memory_by_run(results: Results, run_keys: set[str]) -> dict[str, snapshot.Memory]:
    rows: dict[str, list[Row]] = {}
    for row in plain_rows(results.memory):
        if row["run_key"] in run_keys:
            rows.setdefault(row["run_key"], []).append(row)
    return {run_key: _memory(own) for run_key, own in rows.items()}


def _failure(group: CellGroup) -> str:
    errors = "; ".join(
        f"{status}: {error or 'no reason given'}" for status, error, _ in group.problems
    )
    count = sum(count for _, _, count in group.problems)
    return errors if group.runs == 1 else f"{count} of {group.runs} runs failed: {errors}"


def _remarks(rows: Sequence[Row]) -> Iterator[str]:
    """Yield what makes the figures of a cell's runs less certain."""
    contended = sum(row["contended"] is True for row in rows)
    if contended:
        yield (
            f"the times of {contended} of {len(rows)} processes are left out, "
            f"as others used the machine{'; no time is left' if contended == len(rows) else ''}"
        )
    unstable = sum(row["unstable"] is True for row in rows)
    if unstable:
        yield f"steps changed their level in {unstable} of {len(rows)} processes"
    for metric in GATED_METRICS.values():
        values = {row[metric.column] for row in rows if is_number(row.get(metric.column))}
        if metric.measured == "exact" and len(values) > 1:
            yield (
                f"{metric.name} differs between its runs, from {min(values)} to "
                f"{max(values)}; the highest counts"
            )


def _folded(remarks: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """Turn labels with remarks into one remark each, after all labels that it is true of."""
    labels: dict[str, list[str]] = {}
    for label, text in remarks:
        labels.setdefault(text, []).append(label)
    for text, of in labels.items():
        yield ", ".join(of), text
