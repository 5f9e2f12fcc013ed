"""Synthetic results for the tests of the read side: complete rows, committed like real ones."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

from matplotlib.text import Text

from kdbench.analysis.aggregate import group_cells
from kdbench.analysis.figures.sheet import Sheet
from kdbench.analysis.reference import find_reference
from kdbench.analysis.results import load_results
from kdbench.spec.cell import digest
from kdbench.store import Store
from kdbench.store.schema import SCHEMA_VERSION, TABLES

# label parts, parameter bytes, peak allocated, seconds per step: the paper's four bars, fp32.
PAPER_BARS = (
    ("teacher-kd", "base", 32, 1.247e9, 2.07e9, 13.0),
    ("embed-kd", "large", 32, 0.1286e9, 2.68e9, 4.8),
    ("embed-kd", "base", 64, 0.0204e9, 4.90e9, 9.0),
    ("embed-kd", "large", 64, 0.129e9, 12.2e9, 40.0),
)
STARTED = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CPU = {
    "device": "cpu",
    "threads": 2,
    "cpu_model": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz",
    "gpu_name": None,
    "driver_version": None,
    "torch_version": "2.11.0+cpu",
}
GPU = {
    "device": "cuda:0",
    "threads": 8,
    "cpu_model": "AMD EPYC 9554 64-Core Processor",
    "gpu_name": "NVIDIA H200",
    "driver_version": "570.124.06",
    "torch_version": "2.11.0+cu128",
}


def cell_row(
    method: str = "teacher-kd",
    student: str = "base",
    image_size: int = 32,
    teacher: str | None = "vit-large-patch32",
    **changes: Any,
) -> dict[str, Any]:
    """Make a row of `cells` of a finished profile run; `changes` are columns."""
    teacher = None if method == "student-only" else teacher
    parts = [method, student, f"{image_size}px", *([teacher] if teacher else [])]
    row: dict[str, Any] = dict.fromkeys(column.name for column in TABLES["cells"])
    row |= {
        "label": "/".join(parts),
        "matrix": "fig4",
        "mode": "profile",
        "method": method,
        "student": student,
        "student_inferred": student == "large",
        "image_size": image_size,
        "teacher": teacher,
        "teacher_weights": "random" if teacher else None,
        "teacher_checkpoint": f"google/{teacher}-224-in21k" if teacher else None,
        "epochs": 200,
        "dataset": "cifar100-shaped",
        "batch_size": 64,
        "precision": "fp32",
        "attention": "eager",
        "loss": "paper",
        "alpha1": 0.5,
        "alpha2": 0.5,
        "optimizer": "adamw",
        "learning_rate": 1e-4,
        "compile": False,
        "checkpointing": False,
        "seed": 0,
        "repeat": 0,
        "launch": "spawn",
        "source": "measured",
        **CPU,
        "status": "ok",
        "step_seconds_median": 1.0,
        "steps_measured": 10,
        "epoch_seconds": 781.0,
        "epoch_seconds_kind": "extrapolated",
        "parameter_bytes": 1_000_000_000,
        "student_parameters": {"base": 5_060_000, "large": 32_200_000}.get(student, 150_000),
        "allocated_peak_bytes": 2_000_000_000,
        "allocated_source": "ledger",
        "host_peak_bytes": 3_000_000_000,
        "host_source": "vmhwm",
        "wall_seconds": 60.0,
        "started_at": STARTED,
        "git_revision": "aa1203a0f00d",
        "environment": "{}",
        "schema_version": SCHEMA_VERSION,
    }
    if method == "embed-kd":
        row |= {
            "precompute_seconds": 500.0,
            "precompute_seconds_kind": "extrapolated",
            "precompute_peak_bytes": 1_500_000_000,
            "precompute_kept_bytes": 409_600,
            "precompute_key": "5eed",
            "precompute_reused": False,
        }
    row |= changes
    identity = {k: row[k] for k in ("method", "student", "image_size", "teacher", "dataset")}
    settings = {k: row[k] for k in ("batch_size", "precision", "attention", "alpha2")}
    row["cell_id"] = changes.get("cell_id") or digest({**identity, **settings})
    return row


def commit(root: Path, rows: list[dict[str, Any]], **tables: list[dict[str, Any]]) -> Path:
    """Commit each row as a run of its own into the store `root`; `tables` go with every run."""
    store = Store(root)
    store.prepare()
    for index, row in enumerate(rows):
        started = row["started_at"] + timedelta(minutes=index)
        key = digest({**row, "started_at": str(started), "index": index})
        store.commit(key, {**tables, "cells": [{**row, "started_at": started}]})
    return root


def no_numbers(status: str, error: str) -> dict[str, Any]:
    """Columns of a run that did not finish."""
    return {
        "status": status,
        "error": error,
        "step_seconds_median": None,
        "steps_measured": None,
        "epoch_seconds": None,
        "epoch_seconds_kind": None,
        "precompute_seconds": None,
        "precompute_seconds_kind": None,
        "precompute_peak_bytes": None,
        "precompute_kept_bytes": None,
        "parameter_bytes": None,
        "student_parameters": None,
        "allocated_peak_bytes": None,
        "allocated_source": None,
        "host_peak_bytes": None,
        "host_source": None,
    }


def paper_rows(*, runs: int = 1, **changes: Any) -> list[dict[str, Any]]:
    """Make the paper's four bars, each with `runs` repeats whose times differ by a few percent."""
    return [
        cell_row(
            method,
            student,
            size,
            **{
                "parameter_bytes": int(parameters),
                "allocated_peak_bytes": int(allocated),
                "step_seconds_median": seconds * (1 + 0.03 * repeat),
                "epoch_seconds": 781 * seconds * (1 + 0.03 * repeat),
                "repeat": repeat,
                **changes,
            },
        )
        for repeat in range(runs)
        for method, student, size, parameters, allocated, seconds in PAPER_BARS
    ]


def trained_rows(*, seeds: int = 3, **changes: Any) -> list[dict[str, Any]]:
    """Make rows as the quickstart's: three methods trained on the digits, several seeds each."""
    bars = (("teacher-kd", 0.945, 0.21), ("embed-kd", 0.955, 0.06), ("student-only", 0.931, 0.055))
    return [
        cell_row(
            method,
            "tiny",
            16,
            "small",
            **{
                "matrix": "quickstart",
                "mode": "train",
                "dataset": "digits",
                "teacher_weights": None if method == "student-only" else "fitted",
                "parameter_bytes": 11_200_000 if method == "teacher-kd" else 630_000,
                "allocated_peak_bytes": 61_000_000 if method == "teacher-kd" else 42_000_000,
                "step_seconds_median": seconds * (1 + 0.02 * seed),
                "epoch_seconds": 22 * seconds * (1 + 0.02 * seed),
                "epoch_seconds_kind": "measured",
                "accuracy": accuracy + 0.004 * seed,
                "accuracy_best": accuracy + 0.006 * seed,
                "seed": seed,
                **({"precompute_seconds": 3.0} if method == "embed-kd" else {}),
                **changes,
            },
        )
        for seed in range(seeds)
        for method, accuracy, seconds in bars
    ]


def epoch_rows(
    accuracy: float = 0.9, *, epochs: int = 6, steps: int = 22, seconds: float = 1.0
) -> list[dict[str, Any]]:
    """Make rows of `epochs` of a training that comes near an accuracy; its loss falls."""
    return [
        {
            "epoch": epoch,
            "steps": steps,
            "train_seconds": seconds,
            "train_loss": 2.3 * 0.6**epoch + 0.2,
            "train_accuracy": accuracy * (1 - 0.55 ** (epoch + 1)),
            "evaluate_seconds": 0.1,
            "test_loss": 2.2 * 0.65**epoch + 0.25,
            "test_accuracy": accuracy * (1 - 0.5 ** (epoch + 1)),
            "learning_rate": 1e-3,
        }
        for epoch in range(epochs)
    ]


def commit_trainings(root: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    """Commit rows of trainings, each with epochs that come near its own accuracy."""
    store = Store(root)
    store.prepare()
    for index, row in enumerate(rows):
        started = row["started_at"] + timedelta(minutes=index)
        key = digest({**row, "started_at": str(started), "index": index})
        accuracy = row["accuracy"] if row["accuracy"] is not None else 0.5
        epochs = epoch_rows(accuracy, **changes)
        store.commit(key, {"epochs": epochs, "cells": [{**row, "started_at": started}]})
    return root


def sweep_rows(
    *,
    methods: tuple[str, ...] = ("teacher-kd", "embed-kd"),
    alphas: tuple[float, ...] = (0.1, 0.3, 0.5, 0.7, 0.9),
    seeds: int = 3,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Make rows of a sweep of alpha2, with the student alone beside it."""
    points = [(method, alpha) for method in methods for alpha in alphas]
    rows = []
    for seed in range(seeds):
        for method, alpha in [*points, ("student-only", 0.0)]:
            rank = methods.index(method) if method in methods else len(methods)
            row = cell_row(method, "tiny", 16, "small")
            rows.append(
                row
                | cell_row(
                    method,
                    "tiny",
                    16,
                    "small",
                    **{
                        "label": f"{row['label']}/alpha2={alpha}",
                        "matrix": "fig5",
                        "mode": "train",
                        "dataset": "digits",
                        "epochs": 6,
                        "alpha1": 1 - alpha,
                        "alpha2": alpha,
                        "accuracy": 0.9
                        + 0.05 * alpha
                        - 0.05 * alpha**2
                        - 0.01 * rank
                        + 0.003 * seed,
                        "epoch_seconds": 2.0 + rank,
                        "epoch_seconds_kind": "measured",
                        "seed": seed,
                        **changes,
                    },
                )
            )
    return rows


def written_texts(figure: Any) -> list[tuple[str, Any]]:
    """Draw a figure on its canvas and return every text that was, with its box in pixels."""
    found = []
    draw_text = Text.draw

    def recorded(text: Text, renderer: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            # Of the text alone: an annotation's own extent has its line in it.
            found.append((text.get_text(), Text.get_window_extent(text, renderer)))
        draw_text(text, renderer)

    with mock.patch.object(Text, "draw", recorded):
        figure.canvas.draw()
    return found


def misplaced(figure: Any) -> list[str]:
    """Draw a figure; list the texts that leave the canvas or lie on another."""
    found = written_texts(figure)
    width, height = figure.bbox.width, figure.bbox.height
    wrong = [
        f"{text!r} is cut"
        for text, box in found
        if box.x0 < 0 or box.y0 < 0 or box.x1 > width or box.y1 > height
    ]
    for index, (text, box) in enumerate(found):
        wrong += [
            f"{text!r} on {other!r}"
            for other, beside in found[index + 1 :]
            if box.padded(-1).overlaps(beside.padded(-1))
        ]
    return wrong


def sheet_of(root: Path, metrics: tuple[Any, ...] = ()) -> Sheet:
    """Load the one matrix and environment of a store, as the figures get it."""
    results = load_results(root)
    ((matrix, environment, rows),) = results.sheets()
    groups = group_cells(rows)
    return Sheet(matrix, environment, rows, groups, find_reference(groups, None), metrics)
