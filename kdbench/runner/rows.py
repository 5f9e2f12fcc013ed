"""Makes a run's rows for the store from its events and samples."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kdbench.common.stats import has_shifted, median, median_interval
from kdbench.runner.outcome import Outcome, judge_outcome
from kdbench.runner.process.launcher import ProcessResult
from kdbench.runner.telemetry.columns import condition_columns, energy_columns, precompute_joules
from kdbench.runner.telemetry.windows import (
    Sample,
    Window,
    baseline,
    highest,
    suspensions,
    timed_spans,
)
from kdbench.spec.cell import CellRun
from kdbench.store.schema import SCHEMA_VERSION, STEP_PARTS, TABLES

Rows = dict[str, list[dict[str, Any]]]

# The phases with timed steps.
_TIMED = ("measure", "train")
# The columns that the worker's `result` events hold as they are.
_RESULT_COLUMNS = (
    *("precompute_seconds", "precompute_seconds_kind", "precompute_peak_bytes"),
    *("precompute_kept_bytes", "precompute_key", "precompute_reused", "teacher_revision"),
    *("teacher_preprocessing", "teacher_preprocessing_source", "data_storage", "parameter_bytes"),
    *("student_parameters", "method_parameters", "flops_step", "operations_step"),
    "bytes_moved_step",
)


def summarise(
    run: CellRun,
    process: ProcessResult,
    *,
    samples: Sequence[Sample],
    environment: Mapping[str, Any],
    started_at: datetime,
    log: Path,
    rates: Mapping[str, Any],
) -> Rows:
    """Make the rows of all tables from what a run left behind, however it ended.

    `rates` are the highest rates of the device in the run's precision; empty if unknown.
    """
    events = by_kind(process.events)
    outcome = judge_outcome(process, events, log)
    # workers of older versions report no suspensions
    steps = [step | {"suspended": bool(step.get("suspended"))} for step in events.get("step", [])]
    timed = [step for step in steps if step["phase"] in _TIMED]
    # A suspended step's time is that of the suspension, and of a cold machine after it.
    clean = [step for step in timed if not step["suspended"]]
    epochs, timelines = events.get("epoch", []), events.get("timeline", [])
    whole_epochs = _whole(epochs, timed)
    last = max((_attempt(event) for event in events.get("phase_start", [])), default=0)
    phases = _with_polled_peaks(_phases(events), samples, attempt=last)
    # The samples cover the last process only, and an earlier attempt may have another boot's clock:
    # sampled columns come from the last attempt. What a step or phase measures itself, its time and
    # exact peaks, counts in every attempt.
    sampled = [step for step in timed if _attempt(step) == last]
    starts = [phase["started_ns"] for phase in phases if _attempt(phase) == last]
    holes = suspensions([step for step in steps if _attempt(step) == last])
    spans = timed_spans(sampled, starts, holes)
    # a suspension does not change how many bytes are in use
    memory_windows = [span.window for span in timed_spans(sampled, starts, [])]
    # `result` comes in parts: a later event adds to an earlier one
    result = {key: value for event in events.get("result", []) for key, value in event.items()}
    threads = next((event["threads"] for event in events.get("started", [])), None)
    cell = {
        **_common_columns(run, outcome, environment, started_at, process.wall_seconds),
        "threads": threads,
        **_time_columns(run, clean, whole_epochs),
        "suspended_steps": len(timed) - len(clean) if timed else None,
        **_steadiness_columns(run, steps, clean, result),
        **_memory_columns(timed, phases, samples, result, memory_windows),
        **energy_columns(run, samples, spans, whole_epochs),
        **condition_columns(
            run,
            samples,
            [span.window for span in spans],
            threads=threads,
            streamed=result.get("data_storage") == "stream",
        ),
        "precompute_joules": precompute_joules(samples, result),
        **_accuracy_columns(run, epochs),
        **{name: result.get(name) for name in _RESULT_COLUMNS},
    }
    if run.mode == "train":
        cell["steps_resumed"] = len(timed) - len(sampled)
    cell |= _rate_columns(cell, rates)
    return of_tables(
        {
            "cells": [cell],
            "phases": phases,
            "steps": steps,
            "epochs": epochs,
            "memory": events.get("memory", []),
            "timeline": [row for event in timelines for row in timeline_rows(event)],
            "samples": list(samples),
        }
    )


def failed_rows(
    run: CellRun, outcome: Outcome, *, environment: Mapping[str, Any], started_at: datetime
) -> Rows:
    """Make the row of a run whose process did not start."""
    return of_tables({"cells": [_common_columns(run, outcome, environment, started_at, 0.0)]})


def by_kind(events: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Group events by kind, and remove the kind from each."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        values = {key: value for key, value in event.items() if key != "event"}
        kinds.setdefault(str(event.get("event")), []).append(values)
    return kinds


def timeline_rows(event: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Make rows of a step's timeline, whose event holds columns."""
    columns = {c.name: event[c.name] for c in TABLES["timeline"] if c.name in event}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def of_tables(rows: Rows) -> Rows:
    """Give each row all the columns of its table, and no others."""
    return {
        table: [{column.name: row.get(column.name) for column in columns} for row in rows[table]]
        for table, columns in TABLES.items()
        if table in rows
    }


def _common_columns(
    run: CellRun,
    outcome: Outcome,
    environment: Mapping[str, Any],
    started_at: datetime,
    wall_seconds: float,
) -> dict[str, Any]:
    names = ("cpu_model", "gpu_name", "driver_version", "torch_version", "git_revision")
    return {
        **run.plan_row(),
        **outcome.columns(),
        "wall_seconds": wall_seconds,
        "started_at": started_at,
        "schema_version": SCHEMA_VERSION,
        **{name: environment[name] for name in names},
        # missing in the record of an older version
        "runtime_settings": environment.get("runtime_settings"),
        "environment": json.dumps(environment, sort_keys=True),
    }


def _whole(
    epochs: Sequence[Mapping[str, Any]], timed: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Return the epochs without a suspended step."""
    lost = {step.get("epoch") for step in timed if step["suspended"]}
    return [epoch for epoch in epochs if epoch["epoch"] not in lost]


def _time_columns(
    run: CellRun, timed: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    seconds = [step["seconds"] for step in timed]
    middle = median(seconds)
    low, high = median_interval(seconds) or (None, None)
    columns: dict[str, Any] = {
        "step_seconds_median": middle,
        "step_seconds_ci_low": low,
        "step_seconds_ci_high": high,
        "step_seconds_fastest": min(seconds, default=None),
        "steps_measured": len(seconds),
        "step_device_seconds_median": _median_of(timed, "device_seconds"),
        **{f"step_{part}_seconds": _median_of(timed, f"{part}_seconds") for part in STEP_PARTS},
    }
    if epochs:
        whole = median([epoch["train_seconds"] for epoch in epochs])
        return columns | {"epoch_seconds": whole, "epoch_seconds_kind": "measured"}
    if middle is not None:
        whole = middle * run.cell.steps_per_epoch
        return columns | {"epoch_seconds": whole, "epoch_seconds_kind": "extrapolated"}
    return columns


def _median_of(steps: Sequence[Mapping[str, Any]], column: str) -> float | None:
    return median([step[column] for step in steps if step.get(column) is not None])


def _steadiness_columns(
    run: CellRun,
    steps: Sequence[Mapping[str, Any]],
    timed: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
) -> dict[str, Any]:
    """Judge whether step times shifted; with few steps, whether the warm-up settled."""
    unstable = has_shifted([step["seconds"] for step in timed])
    settled = result.get("warmup_settled")
    if unstable is None and timed and settled is not None:
        unstable = not settled
    warm = sum(step["phase"] == "warmup" for step in steps)
    return {"unstable": unstable, "warmup_steps": warm if run.mode == "profile" and steps else None}


def _memory_columns(
    timed: Sequence[Mapping[str, Any]],
    phases: Sequence[Mapping[str, Any]],
    samples: Sequence[Sample],
    result: Mapping[str, Any],
    windows: Sequence[Window],
) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    exact, reserved = (
        [step[name] for step in timed if step.get(name) is not None]
        for name in ("allocated_peak_bytes", "reserved_peak_bytes")
    )
    counted = (s for s in ("ledger", "profiler") if result.get(f"{s}_peak_bytes") is not None)
    if exact:
        columns |= {"allocated_peak_bytes": max(exact), "allocated_source": "cuda-allocator"}
        columns["reserved_peak_bytes"] = max(reserved, default=None)
    elif source := next(counted, None):
        peak = result[f"{source}_peak_bytes"]
        columns |= {"allocated_peak_bytes": peak, "allocated_source": source}
    if result.get("second_peak_bytes") is not None:
        columns["unattributed_bytes"] = result["second_peak_bytes"] - result["ledger_peak_bytes"]
        columns["unattributed_scratch_bytes"] = result.get("scratch_bytes")
    process = highest(samples, "process_bytes", windows)
    device, idle = highest(samples, "device_bytes", windows), baseline(samples, "device_bytes")
    if process is not None:
        columns |= {"process_peak_bytes": process, "process_source": "nvml-polled"}
    # Less than when idle: another process freed memory, and ours is unknown.
    if device is not None and idle is not None and device >= idle:
        columns |= {"device_peak_bytes": device - idle, "device_source": "nvml-polled"}
    return columns | _host_columns(phases, samples, windows)


def _host_columns(
    phases: Sequence[Mapping[str, Any]], samples: Sequence[Sample], windows: Sequence[Window]
) -> dict[str, Any]:
    exact = [
        phase["host_peak_bytes"]
        for phase in phases
        if phase["phase"] in _TIMED and phase.get("host_source") == "vmhwm"
    ]
    if exact:
        return {"host_peak_bytes": max(exact), "host_source": "vmhwm"}
    # No timed phase ended, or the system keeps no high-water mark.
    seen = highest(samples, "host_bytes", windows)
    return {} if seen is None else {"host_peak_bytes": seen, "host_source": "polled"}


def _phases(events: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return every phase by attempt; the one in which the worker died has no figures."""
    finished = {
        (_attempt(row), row["started_ns"]): row | {"suspended": bool(row.get("suspended"))}
        for row in events.get("phase", [])
    }
    begun = events.get("phase_start", [])
    unfinished = [row for row in begun if (_attempt(row), row["started_ns"]) not in finished]
    # An attempt reports its own set-up before it repeats the phases of earlier attempts.
    return sorted([*finished.values(), *unfinished], key=_attempt)


def _attempt(event: Mapping[str, Any]) -> int:
    return event.get("attempt") or 0


def _with_polled_peaks(
    phases: Sequence[Mapping[str, Any]], samples: Sequence[Sample], *, attempt: int
) -> list[dict[str, Any]]:
    """Use the highest sample where a phase has no exact peak of host memory."""
    filled = []
    for phase in phases:
        row = dict(phase)
        unknown = row.get("host_peak_bytes") is None and row.get("seconds") is not None
        if unknown and _attempt(row) == attempt:
            end = row["started_ns"] + int(row["seconds"] * 1e9)
            row["host_peak_bytes"] = highest(samples, "host_bytes", [(row["started_ns"], end)])
            row["host_source"] = "polled" if row["host_peak_bytes"] is not None else None
        filled.append(row)
    return filled


def _rate_columns(cell: Mapping[str, Any], rates: Mapping[str, Any]) -> dict[str, Any]:
    """Return the device's highest rates, and the share of them that the step reaches."""
    flops, seconds = cell["flops_step"], cell["step_seconds_median"]
    names = ("matmul_flops_per_second", "copy_bytes_per_second", "rates_steady", "rates_contended")
    columns = {name: rates.get(name) for name in names}
    matmul = columns["matmul_flops_per_second"]
    known = flops is not None and matmul and seconds
    return columns | {"utilisation": flops / seconds / matmul if known else None}


def _accuracy_columns(run: CellRun, epochs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not epochs:
        return {}
    accuracies = [epoch["test_accuracy"] for epoch in epochs]
    whole = len(epochs) == run.cell.training.epochs
    return {"accuracy": accuracies[-1] if whole else None, "accuracy_best": max(accuracies)}
