"""What the tests of the gate share: stand-ins for predictions, and stores of measured runs."""

from __future__ import annotations

import json

from kdbench.spec.cell import digest
from kdbench.store import Store
from kdbench.store.schema import SCHEMA_VERSION, TABLES
from tests.support.analysis_fixtures import STARTED, cell_row

MB = 10**6
TEACHER, EMBED = "teacher-kd/small/8px/dwarf", "embed-kd/small/8px/dwarf"
# as the processes of one constant step were seen to differ
SPREAD = (1.0, 1.01, 0.995, 1.02, 1.004, 0.99, 1.013, 1.007, 0.998, 1.016)


class Predictor:
    """Stands in for the process that predicts: rows of the cells that a matrix asks for."""

    def __init__(self):
        self.asked = []
        self.changes = {}
        self.memory = {}
        self.every = {}

    def __call__(self, matrix, profile):
        self.asked.append(profile)
        runs = {run.cell.label: run for run in matrix.runs()}
        return [self.rows(run, profile or "cpu") for run in runs.values()]

    def rows(self, run, profile):
        label = run.cell.label
        sizes = {"activations": 50 * MB, "parameters": 20 * MB} | self.memory.get(label, {})
        embeds = run.cell.method == "embed-kd"
        row = dict.fromkeys(column.name for column in TABLES["cells"])
        row |= run.plan_row() | {
            "status": "ok",
            "source": "predicted",
            "profile": profile,
            "parameter_bytes": 20 * MB,
            "allocated_peak_bytes": sum(sizes.values()),
            "first_allocated_peak_bytes": 60 * MB,
            "reserved_peak_bytes": None if profile == "cpu" else 80 * MB,
            "precompute_peak_bytes": 30 * MB if embeds else None,
            "precompute_kept_bytes": 4096 if embeds else None,
            "flops_step": 1e9,
            "operations_step": 500,
            "bytes_moved_step": 900 * MB,
            "torch_version": "2.13.0+cpu",
            "environment": json.dumps({"profile_digest": "5eed"}),
            "schema_version": SCHEMA_VERSION,
        }
        row |= self.every | self.changes.get(label, {})
        memory = [
            {
                "stage": "steady",
                "category": name.partition(" ")[0],
                "module": f"student.blocks.{name.partition(' ')[2] or 0}.mlp",
                "bytes": size,
                "blocks": 1,
            }
            for name, size in sizes.items()
        ]
        return {"cells": [row], "memory": memory}


def measured_row(method="teacher-kd", **changes):
    changes = {"flops_step": 1e9, "operations_step": 500, "contended": False, **changes}
    return cell_row(method, **changes)


def stored(
    root,
    *,
    seconds=SPREAD,
    methods=("teacher-kd", "embed-kd"),
    memory=50 * MB,
    loads=None,
    **changes,
):
    """Commit one run for each time, as processes of their own, into a new store."""
    store = Store(root / "fig4")
    store.prepare()
    for method in methods:
        for repeat, value in enumerate(seconds):
            times = {"repeat": repeat, "step_seconds_fastest": value, "started_at": STARTED}
            row = measured_row(method, **{**times, **changes})
            row["cpu_elsewhere"] = loads[repeat] if loads else None
            part = {"category": "activations", "module": "student.blocks.0", "blocks": 2}
            tables = {"cells": [row], "memory": [{"stage": "steady", "bytes": memory, **part}]}
            store.commit(digest([method, repeat, str(row)]), tables)
    return root
