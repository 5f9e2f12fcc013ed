"""Looks into stores, for tests."""

from pathlib import Path

from kdbench.store import read_table


def statuses(root: Path) -> dict[str, str]:
    """Return the status of every committed run by its run_key."""
    cells = read_table(root, "cells", columns=["run_key", "status"])
    return dict(zip(cells["run_key"], cells["status"], strict=True))
