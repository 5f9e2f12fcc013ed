"""From a run's events and samples to its rows in the store."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from kdbench.common.stats import has_shifted, median, median_interval
from kdbench.runner.outcome import Outcome, judge_outcome
from kdbench.runner.process.launcher import ProcessResult
from kdbench.runner.telemetry.columns import (
    condition_columns,
    energy_columns,
    precompute_joules,
)
from kdbench.runner.telemetry.spans import holes_of, spans_of
from kdbench.runner.telemetry.windows import Sample, Window, baseline, highest
from kdbench.spec.cell import CellRun
from kdbench.store.schema import SCHEMA_VERSION, STEP_PARTS, TABLES

Rows = dict[str, list[dict[str, Any]]]

# The phases whose steps a cell's figures are made of.
_TIMED = ("measure", "train")


def summarise(
    run: CellRun,
    outcome: ProcessResult,
    *,
    samples: Sequence[Sample],
    environment: Mapping[str, Any],
    started_at: datetime,
    log: Path,
    rates: Mapping[str, Any],
) -> Rows:
    """Make the rows of all tables from what a run left behind, however it ended.

    Args:
        run: what was run.
        outcome: how its process ended, and what it told.
        samples: what was seen of it from outside.
        environment: the machine.
        started_at: when its process was started.
        log: where its output is.
        rates: what the device reaches at best in the run's precision; empty where not known.
    """
    events = by_kind(outcome.events)
    end = judge_outcome(outcome, events, log)
    # told by every process since there is the word; what has none is of an earlier one
    steps = [step | {"suspended": bool(step.get("suspended"))} for step in events.get("step", [])]
    timed = [step for step in steps if step["phase"] in _TIMED]
    # Times come from these alone: the others are of a suspension, and of steps that it left cold.
    clean = [step for step in timed if not step["suspended"]]
    epochs = events.get("epoch", [])
    last = _last_attempt(events)
    phases = _with_polled_peaks(_phases(events), samples, attempt=last)
    # The samples are of this process alone, and the clock of an earlier one may be another boot's:
    # what is sampled is of the last attempt's steps. What a step or phase tells of itself, its
    # time and its exact peaks, counts whichever process it ran in.
    sampled = [step for step in timed if _attempt(step) == last]
    begun = [phase["started_ns"] for phase in phases if _attempt(phase) == last]
    holes = holes_of([step for step in steps if _attempt(step) == last])
    spans = spans_of(sampled, begun, holes)
    windows = [span.window for span in spans]
    # bytes are what they are: no suspension makes them more
    everywhere = [span.window for span in spans_of(sampled, begun, [])]
    # A later event adds to an earlier one: `result` comes in parts.
    result = {key: value for event in events.get("result", []) for key, value in event.items()}
    threads = next((event["threads"] for event in events.get("started", [])), None)
    cell = {
        **run.plan_row(),
        **end.columns(),
        "threads": threads,
        "wall_seconds": outcome.wall_seconds,
        "started_at": started_at,
        "schema_version": SCHEMA_VERSION,
        **_environment_columns(environment),
        **_time_columns(run, clean, _whole(epochs, timed)),
        "suspended_steps": len(timed) - len(clean) if timed else None,
        **_steadiness_columns(run, steps, clean, result),
        **_memory_columns(timed, phases, samples, result, everywhere),
        **energy_columns(run, samples, spans, _whole(epochs, timed)),
        **condition_columns(
            run,
            samples,
            windows,
            threads=threads,
            streamed=result.get("data_storage") == "stream",
        ),
        "precompute_joules": precompute_joules(samples, result),
        **_accuracy_columns(run, epochs),
    }
    if run.mode == "train":
        cell["steps_resumed"] = len(timed) - len(sampled)
    for name in (
        "precompute_seconds",
        "precompute_seconds_kind",
        "precompute_peak_bytes",
        "precompute_kept_bytes",
        "precompute_key",
        "precompute_reused",
        "teacher_revision",
        "teacher_preprocessing",
        "teacher_preprocessing_source",
        "data_storage",
        "parameter_bytes",
        "student_parameters",
        "method_parameters",
        "flops_step",
        "operations_step",
        "bytes_moved_step",
    ):
        cell[name] = result.get(name)
    cell |= _limit_columns(cell, result, rates)
    rows = {
        "cells": [cell],
        "phases": phases,
        "steps": steps,
        "epochs": epochs,
        "memory": events.get("memory", []),
        "timeline": [row for event in events.get("timeline", []) for row in _timeline(event)],
        "samples": list(samples),
    }
    return {table: [_columns(table, row) for row in rows[table]] for table in TABLES}


def failed_rows(
    run: CellRun,
    end: Outcome,
    *,
    environment: Mapping[str, Any],
    started_at: datetime,
) -> Rows:
    """Make the row of a run that could not even be started, and of how that ended."""
    cell = {
        **run.plan_row(),
        **end.columns(),
        "wall_seconds": 0.0,
        "started_at": started_at,
        "schema_version": SCHEMA_VERSION,
        **_environment_columns(environment),
    }
    return {"cells": [_columns("cells", cell)]}


def by_kind(events: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Sort a process's events by their kind; each without it."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        values = {key: value for key, value in event.items() if key != "event"}
        kinds.setdefault(str(event.get("event")), []).append(values)
    return kinds


def _timeline(event: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Unpack a step's timeline, which is told in one event by columns: thousands of rows."""
    names = [column.name for column in TABLES["timeline"] if column.name in event]
    columns = [event[name] for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _columns(table: str, row: Mapping[str, Any]) -> dict[str, Any]:
    return {column.name: row.get(column.name) for column in TABLES[table]}


def _environment_columns(environment: Mapping[str, Any]) -> dict[str, Any]:
    names = ("cpu_model", "gpu_name", "driver_version", "torch_version", "git_revision")
    return {
        **{name: environment[name] for name in names},
        # a run that an older kdbench left behind tells of none
        "runtime_settings": environment.get("runtime_settings"),
        "environment": json.dumps(environment, sort_keys=True),
    }


def _whole(
    epochs: Sequence[Mapping[str, Any]], timed: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Epochs whose time is that of their training: no step of theirs was suspended."""
    lost = {step.get("epoch") for step in timed if step["suspended"]}
    return [epoch for epoch in epochs if epoch["epoch"] not in lost]


def _time_columns(
    run: CellRun, timed: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    seconds = [step["seconds"] for step in timed]
    middle = median(seconds)
    interval = median_interval(seconds)
    columns: dict[str, Any] = {
        "step_seconds_median": middle,
        "step_seconds_ci_low": interval and interval[0],
        "step_seconds_ci_high": interval and interval[1],
        "step_seconds_fastest": min(seconds, default=None),
        "steps_measured": len(seconds),
        "step_device_seconds_median": _median_of(timed, "device_seconds"),
        **{f"step_{part}_seconds": _median_of(timed, f"{part}_seconds") for part in STEP_PARTS},
    }
    if epochs:
        columns["epoch_seconds"] = median([epoch["train_seconds"] for epoch in epochs])
        columns["epoch_seconds_kind"] = "measured"
    elif middle is not None:
        columns["epoch_seconds"] = middle * run.cell.steps_per_epoch
        columns["epoch_seconds_kind"] = "extrapolated"
    return columns


def _median_of(steps: Sequence[Mapping[str, Any]], column: str) -> float | None:
    return median([step[column] for step in steps if step.get(column) is not None])


def _steadiness_columns(
    run: CellRun,
    steps: Sequence[Mapping[str, Any]],
    timed: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
) -> dict[str, Any]:
    """Whether the timed steps are of one level; the warm-up's end stands in where they are few."""
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
    if exact:
        columns["allocated_peak_bytes"] = max(exact)
        columns["allocated_source"] = "cuda-allocator"
        columns["reserved_peak_bytes"] = max(reserved, default=None)
    elif result.get("ledger_peak_bytes") is not None:
        columns["allocated_peak_bytes"] = result["ledger_peak_bytes"]
        columns["allocated_source"] = "ledger"
    elif result.get("profiler_peak_bytes") is not None:
        columns["allocated_peak_bytes"] = result["profiler_peak_bytes"]
        columns["allocated_source"] = "profiler"
    if result.get("second_peak_bytes") is not None:
        columns["unattributed_bytes"] = result["second_peak_bytes"] - result["ledger_peak_bytes"]
        columns["unattributed_scratch_bytes"] = result.get("scratch_bytes")
    process = highest(samples, "process_bytes", windows)
    device, idle = highest(samples, "device_bytes", windows), baseline(samples, "device_bytes")
    if process is not None:
        columns |= {"process_peak_bytes": process, "process_source": "nvml-polled"}
    # Less than when idle: another process gave memory back, and nothing is known of ours.
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
    # No phase of timed steps came to its end, or the system keeps no high-water mark.
    seen = highest(samples, "host_bytes", windows)
    return {} if seen is None else {"host_peak_bytes": seen, "host_source": "polled"}


def _phases(events: Mapping[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Every phase that began, by attempts; the one that the worker died in has no figures."""
    finished = {
        (_attempt(row), row["started_ns"]): row | {"suspended": bool(row.get("suspended"))}
        for row in events.get("phase", [])
    }
    begun = events.get("phase_start", [])
    unfinished = [row for row in begun if (_attempt(row), row["started_ns"]) not in finished]
    # An attempt tells of its own set-up before it tells again of those before it.
    return sorted([*finished.values(), *unfinished], key=_attempt)


def _attempt(event: Mapping[str, Any]) -> int:
    return event.get("attempt") or 0


def _last_attempt(events: Mapping[str, list[dict[str, Any]]]) -> int:
    """Return the number of this very process among those that a training went through."""
    return max((_attempt(event) for event in events.get("phase_start", [])), default=0)


def _with_polled_peaks(
    phases: Sequence[Mapping[str, Any]], samples: Sequence[Sample], *, attempt: int
) -> list[dict[str, Any]]:
    """Fill in the highest sample where a phase has no exact peak of the host's memory."""
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


def _limit_columns(
    cell: Mapping[str, Any], result: Mapping[str, Any], rates: Mapping[str, Any]
) -> dict[str, Any]:
    """How far the step is from what the device reaches at best."""
    flops, matmul = result.get("flops_step"), rates.get("matmul_flops_per_second")
    seconds = cell["step_seconds_median"]
    known = flops is not None and matmul and seconds
    return {
        "flops_step": flops,
        "matmul_flops_per_second": matmul,
        "copy_bytes_per_second": rates.get("copy_bytes_per_second"),
        "rates_steady": rates.get("rates_steady"),
        "rates_contended": rates.get("rates_contended"),
        "utilisation": flops / seconds / matmul if known else None,
    }


def _accuracy_columns(run: CellRun, epochs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if not epochs:
        return {}
    accuracies = [epoch["test_accuracy"] for epoch in epochs]
    whole = len(epochs) == run.cell.training.epochs
    return {"accuracy": accuracies[-1] if whole else None, "accuracy_best": max(accuracies)}
