"""Class embeddings: the mean teacher embedding of each class, computed before training."""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.cell import Budget, Cell
from kdbench.errors import InputError
from kdbench.worker.augment import prepare
from kdbench.worker.data import DataSet
from kdbench.worker.ledger import Ledger
from kdbench.worker.probes import Probes


@dataclass(frozen=True)
class Precompute:
    """The embeddings, and what they cost."""

    #: [classes, teacher width]
    embeddings: Tensor
    #: timed batches, and those that a whole computation needs
    batches: int
    batches_total: int
    #: seconds of the whole computation
    seconds: float
    kind: str
    #: peak allocated by one batch beside the teacher, from the ledger; None on CUDA
    ledger_peak_bytes: int | None

    def row(self) -> dict[str, Any]:
        """Return the figures for the event that reports them."""
        return {
            "precompute_seconds": self.seconds,
            "precompute_seconds_kind": self.kind,
            "precompute_kept_bytes": self.embeddings.untyped_storage().nbytes(),
            "precompute_peak_bytes": self.ledger_peak_bytes,
        }


def class_embeddings(
    cell: Cell,
    data: DataSet,
    teacher: nn.Module,
    *,
    budget: Budget | None,
    device: torch.device,
    probes: Probes,
    seed: int,
) -> Precompute:
    """Average the teacher's embeddings over `images_per_class` training images of each class.

    Args:
        cell: names the classes, images per class and batch size.
        data: the images; a synthetic set stands for as many as it is asked for.
        teacher: maps images to embeddings [n, width].
        budget: stop when it is spent and extrapolate the time; None computes them all. Classes
            that it did not reach get random embeddings: a profile's steps cost the same.
        device: where it runs.
        probes: to synchronise the device for the clock.
        seed: chooses the images.

    Raises:
        InputError: a class has no training image.
    """
    rows, labels = _choose(cell, data, seed)
    size, batch = cell.required_teacher.image_size, cell.training.batch_size
    labels = labels.to(device)
    ledger_peak = _warm_up(data, teacher, rows[:batch], size, device)
    sums: Tensor | None = None
    total = -(-len(rows) // batch)
    clock = _Clock(budget, probes)
    for number, held in enumerate(data.train.batches(batch, rows)):
        chosen = slice(number * batch, (number + 1) * batch)
        with torch.no_grad():
            embedded = teacher(prepare(held.pixels, size)).float()
            if sums is None:
                sums = embedded.new_zeros((cell.data.classes, embedded.shape[-1]))
            sums.index_add_(0, labels[chosen], embedded)
        if clock.spent():
            break
    assert sums is not None  # noqa: S101 - there is at least one class, hence one batch
    counts = torch.bincount(labels[: clock.batches * batch], minlength=cell.data.classes)
    means = torch.where(
        counts[:, None] > 0,
        sums / counts.clamp(min=1)[:, None],
        torch.randn(sums.shape, generator=torch.Generator().manual_seed(seed)).to(device),
    )
    whole = clock.batches == total
    return Precompute(
        embeddings=means,
        batches=clock.batches,
        batches_total=total,
        seconds=clock.seconds if whole else clock.seconds / clock.batches * total,
        kind="measured" if whole else "extrapolated",
        ledger_peak_bytes=ledger_peak,
    )


class _Clock:
    """Counts batches against the budget."""

    def __init__(self, budget: Budget | None, probes: Probes) -> None:
        self._budget, self._probes = budget, probes
        self._probes.synchronize()
        self._started = monotonic()
        self.batches, self.seconds = 0, 0.0

    def spent(self) -> bool:
        """Count a batch; whether to stop after it."""
        self.batches += 1
        self._probes.synchronize()
        self.seconds = monotonic() - self._started
        return (
            self._budget is not None
            and self.batches >= self._budget.precompute_min_batches
            and self.seconds >= self._budget.precompute_seconds
        )


def _warm_up(
    data: DataSet, teacher: nn.Module, rows: Tensor, size: int, device: torch.device
) -> int | None:
    """Run one batch un-timed; on the CPU under the ledger, which tells its peak."""
    if device.type != "cpu":
        with torch.no_grad():
            teacher(prepare(next(data.train.batches(len(rows), rows)).pixels, size))
        return None
    ledger = Ledger(device)
    ledger.adopt_module(teacher, "teacher", prefix="teacher")
    ledger.adopt(data.tensors(), "inputs")
    with ledger, torch.no_grad():
        ledger.mark("teacher")
        teacher(prepare(next(data.train.batches(len(rows), rows)).pixels, size))
    return ledger.peak_bytes()


def _choose(cell: Cell, data: DataSet, seed: int) -> tuple[Tensor, Tensor]:
    """Rows of the chosen images and their classes, class after class."""
    per_class, classes = cell.training.images_per_class, cell.data.classes
    if cell.data.source == "synthetic":
        count = per_class * classes
        return (
            torch.arange(count) % len(data.train.labels),
            torch.arange(classes).repeat_interleave(per_class),
        )
    order = torch.randperm(data.train_count, generator=torch.Generator().manual_seed(seed))
    shuffled = data.train.labels.cpu()[order]
    chosen = []
    for number in range(classes):
        found = order[shuffled == number][:per_class]
        if not len(found):
            raise InputError(
                f"class {number} has no training image to embed",
                where=cell.data.name,
                key="data.classes",
            )
        chosen.append(found)
    labels = [torch.full((len(rows),), number) for number, rows in enumerate(chosen)]
    return torch.cat(chosen), torch.cat(labels)
