"""What the paper reports in its Figure 4, as package data (source: reported)."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

PAPER = "arXiv 2404.06170, Figure 4"
# What the paper's times belong to; see DESIGN, The paper's training.
_BATCH_SIZE = 64
_EPOCHS = 200


@dataclass(frozen=True)
class Reported:
    """One bar of the paper, in this project's base units.

    `memory_bytes` counts parameters alone, as the numbers show.
    """

    memory_bytes: float
    accuracy: float
    epoch_seconds: float


def reported_for(settings: Mapping[str, Any], metric: str) -> float | None:
    """Find the paper's number for a cell, in base units; None if it has none.

    Memory metrics all get the paper's one memory figure: whoever shows it must say that it
    counts parameters. Accuracy needs the same training, time the same epoch.
    """
    row = _rows().get(_key(settings))
    if row is None:
        return None
    dataset = "".join(c for c in str(settings["dataset"]).lower() if c not in "-_ ")
    if metric in ("parameters", "allocated", "reserved", "process", "device"):
        return row.memory_bytes
    if metric == "accuracy" and dataset == "cifar100" and settings["epochs"] == _EPOCHS:
        return row.accuracy
    same_epoch = dataset in ("cifar100", "cifar100shaped")
    if metric == "epoch_time" and same_epoch and settings["batch_size"] == _BATCH_SIZE:
        return row.epoch_seconds
    return None


def is_reported(settings: Mapping[str, Any]) -> bool:
    """Whether the paper has a bar for a cell."""
    return _key(settings) in _rows()


def _key(settings: Mapping[str, Any]) -> tuple[str, str, int, str]:
    return (
        str(settings["method"]),
        str(settings["student"]),
        int(settings["image_size"]),
        str(settings["teacher_checkpoint"]),
    )


@cache
def _rows() -> dict[tuple[str, str, int, str], Reported]:
    text = (
        resources.files("kdbench.analysis")
        .joinpath("fig4_reported.csv")
        .read_text(encoding="utf-8")
    )
    return {
        (row["method"], row["student"], int(row["image_size"]), row["teacher"]): Reported(
            memory_bytes=float(row["memory_allocated_gb"]) * 1e9,
            accuracy=float(row["accuracy"]),
            epoch_seconds=float(row["epoch_hours"]) * 3600,
        )
        for row in csv.DictReader(text.splitlines())
    }
