"""What the paper reports in its Figure 4, as package data (source: reported)."""

import csv
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

PAPER = "arXiv 2404.06170, Figure 4"
# What the paper's times belong to; see DESIGN, The paper's training.
_BATCH_SIZE = 64
_EPOCHS = 200


def reported_for(settings: Mapping[str, Any], metric: str) -> float | None:
    """Find the paper's number for a cell, in base units; None if it has none.

    Memory metrics all get the paper's one memory figure, which counts parameters alone, as the
    numbers show: whoever shows it must say so. Accuracy
    needs the same training, time the same epoch.
    """
    row = _rows().get(_key(settings))
    if row is None:
        return None
    dataset = "".join(c for c in str(settings["dataset"]).lower() if c not in "-_ ")
    if metric in ("parameters", "allocated", "reserved", "process", "device"):
        return float(row["memory_allocated_gb"]) * 1e9
    if metric == "accuracy" and dataset == "cifar100" and settings["epochs"] == _EPOCHS:
        return float(row["accuracy"])
    same_epoch = dataset in ("cifar100", "cifar100shaped")
    if metric == "epoch_time" and same_epoch and settings["batch_size"] == _BATCH_SIZE:
        return float(row["epoch_hours"]) * 3600
    return None


def is_reported(settings: Mapping[str, Any]) -> bool:
    """Whether the paper has a bar for a cell."""
    return _key(settings) in _rows()


def _key(settings: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("method", "student", "image_size", "teacher_checkpoint")
    return tuple(str(settings[name]) for name in names)


@cache
def _rows() -> dict[tuple[str, ...], dict[str, str]]:
    file = resources.files("kdbench.analysis").joinpath("fig4_reported.csv")
    rows = csv.DictReader(file.read_text(encoding="utf-8").splitlines())
    return {(r["method"], r["student"], r["image_size"], r["teacher"]): r for r in rows}
