"""The events of a training up to its last checkpoint, in a file that only grows.

A checkpoint says how many bytes of it are its own; what is behind them belongs to steps that were
lost, and is cut off. So a checkpoint costs the lines since the one before, not all of them.
"""

import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdbench.store.schema import TABLES, Dtype
from kdbench.worker.checkpoints.durable import opened
from kdbench.worker.checkpoints.files import Header, UnusableError

# The events that are kept, with their tables and what a row of each cannot be without.
_KEPT = {
    "phase_start": ("phases", ("phase", "started_ns", "attempt")),
    "phase": ("phases", ("phase", "started_ns", "attempt", "seconds")),
    "step": ("steps", ("phase", "step", "epoch", "started_ns", "attempt", "seconds")),
    "epoch": ("epochs", ("epoch", "steps", "train_seconds", "test_accuracy", "attempt")),
}
_TYPES: dict[Dtype, tuple[type, ...]] = {
    "string": (str,),
    "int64": (int,),
    "float64": (int, float),
    "bool": (bool,),
}


class History:
    """The file, and how much of it a checkpoint may count on."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digest = hashlib.blake2b(digest_size=16)
        self.length = 0

    @property
    def digest(self) -> str:
        """Digest of the first `length` bytes."""
        return self._digest.hexdigest()

    def extend(self, lines: Sequence[str]) -> None:
        """Add lines, durably, behind what is counted on; where that fails, nothing has changed."""
        added = "".join(lines).encode()
        # a results folder of somebody else's may hold a link to anything
        with opened(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW) as descriptor:
            os.ftruncate(descriptor, self.length)
            os.lseek(descriptor, 0, os.SEEK_END)
            left = memoryview(added)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        self._digest.update(added)
        self.length += len(added)

    def recover(self, header: Header, *, steps_per_epoch: int) -> bytes:
        """Read and check the lines that a checkpoint goes with, and go on behind them."""
        try:
            lines = self._read(header.history_bytes)
        except OSError as error:
            raise UnusableError(f"its history cannot be read: {error.strerror}") from error
        digest = hashlib.blake2b(lines, digest_size=16)
        if len(lines) != header.history_bytes or digest.hexdigest() != header.history_digest:
            raise UnusableError("its history is not what was written")
        _check(lines, header, steps_per_epoch)
        self._digest, self.length = digest, len(lines)
        return lines

    def _read(self, count: int) -> bytes:
        # A pipe in the file's place has no size, and is not waited for.
        with opened(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as descriptor:
            left = min(count, os.fstat(descriptor).st_size)
            parts = []
            while left and (part := os.read(descriptor, left)):
                parts.append(part)
                left -= len(part)
        return b"".join(parts)


def _check(lines: bytes, header: Header, steps_per_epoch: int) -> None:
    """Check that each line makes a row, and that steps and epochs are those of the header."""
    steps = epochs = 0
    # Line by line: a list of them all would stay in the memory of the process that is measured.
    for line in io.BytesIO(lines):
        event = _parse(line)
        if not _makes_row(event) or event["attempt"] > header.attempt:
            raise UnusableError("its history holds something else than rows")
        if event["event"] == "step":
            in_order = (event["epoch"], event["step"]) == divmod(steps, steps_per_epoch)
            steps += 1
        elif event["event"] == "epoch":
            in_order = event["epoch"] == epochs and steps == (epochs + 1) * steps_per_epoch
            epochs += 1
        else:
            continue
        if not in_order:
            raise UnusableError("its history has its steps or epochs in another order")
    if (steps, epochs) != (header.epoch * steps_per_epoch + header.step, header.epoch):
        raise UnusableError("its history has other steps or epochs")


def _parse(line: bytes) -> Any:
    try:
        text = line.decode()
        return json.loads(text) if text.endswith("\n") else None
    except (ValueError, RecursionError):
        return None


def _makes_row(event: Any) -> bool:
    kind = str(event.get("event")) if isinstance(event, dict) else ""
    if kind not in _KEPT or (kind == "step" and event.get("phase") != "train"):
        return False
    table, needed = _KEPT[kind]
    return all(event.get(name) is not None for name in needed) and all(
        _fits(column.dtype, event.get(column.name)) for column in TABLES[table]
    )


def _fits(dtype: Dtype, value: object) -> bool:
    if value is None:
        return True
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return False
    if isinstance(value, str) and not value.isascii():  # no name of a phase or source of ours
        return False
    return isinstance(value, _TYPES[dtype]) and isinstance(value, bool) == (dtype == "bool")
