"""Which images a teacher embeds before the first step, and what becomes of the embeddings."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from kdbench.common.errors import InputError
from kdbench.spec.cell import Cell
from kdbench.worker.data.augment import prepare, wanted_by
from kdbench.worker.data.dataset import DataSet


class Part(NamedTuple):
    """A batch for the teacher."""

    #: int64, [batch], on the host: which training images
    rows: Tensor
    #: whether they are mirrored
    mirrored: bool
    #: int64, [batch], on the device: their places in the result (class, or image)
    places: Tensor


@dataclass(frozen=True)
class Plan:
    """Which images are embedded, in which batches, and what becomes of their embeddings."""

    data: DataSet
    #: the teacher's side in pixels
    image_size: int
    #: float32 on the device, filled by `add`: [classes, width] or [images, flips, width]
    result: Tensor
    #: in order
    parts: tuple[Part, ...]
    #: takes a part and its embeddings [batch, width]
    add: Callable[[Part, Tensor], None]
    #: takes the number of parts that were added; what no part reached becomes random
    finish: Callable[[int], None]

    def embed(self, teacher: nn.Module, parts: tuple[Part, ...]) -> Iterator[Tensor]:
        """Embed parts in order: float32, [batch, width] each. Streamed images are read once."""
        if not parts:
            return
        rows, size = torch.cat([part.rows for part in parts]), len(parts[0].rows)
        how = wanted_by(teacher)
        # Passes over the images end with a smaller batch: only whole ones can be read in one go.
        ends = {n + 1 for n, part in enumerate(parts) if len(part.rows) != size} | {len(parts)}
        done = 0
        for first, last in pairwise([0, *sorted(ends)]):
            wanted = sum(len(part.rows) for part in parts[first:last])
            batches = self.data.train.batches(size, rows[done : done + wanted])
            done += wanted
            for part, batch in zip(parts[first:last], batches, strict=True):
                pixels = batch.pixels.flip(-1) if part.mirrored else batch.pixels
                with torch.no_grad():  # no name for the images: they are freed before the yield
                    embedded: Tensor = teacher(prepare(pixels, self.image_size, how=how)).float()
                yield embedded


def make_plan(cell: Cell, data: DataSet, *, device: torch.device, seed: int) -> Plan:
    """Plan what the cell's method has computed before its first step."""
    if cell.method_spec.teacher == "class-embeddings":
        return plan_class_embeddings(cell, data, device=device, seed=seed)
    return plan_image_embeddings(cell, data, device=device)


def plan_class_embeddings(cell: Cell, data: DataSet, *, device: torch.device, seed: int) -> Plan:
    """Plan the mean embedding of each class over `images_per_class` of its training images.

    The seed chooses them; a synthetic set stands for as many as it is asked for.
    """
    rows, labels = _choose(cell, data, seed)
    labels = labels.to(device)
    classes, size = cell.data.classes, cell.training.precompute_batch_size
    result = torch.zeros((classes, cell.required_teacher.width), device=device)
    parts = tuple(
        Part(rows[start : start + size], False, labels[start : start + size])
        for start in range(0, len(rows), size)
    )

    def add(part: Part, embedded: Tensor) -> None:
        result.index_add_(0, part.places, embedded)

    def finish(added: int) -> None:
        taken = labels[: added * size]
        counts = torch.zeros(classes, device=device).index_add_(
            0, taken, torch.ones(len(taken), device=device)
        )
        result.div_(counts.clamp(min=1)[:, None])
        _randomise(result, counts == 0, seed)

    return Plan(data, cell.required_teacher.image_size, result, parts, add, finish)


def plan_image_embeddings(cell: Cell, data: DataSet, *, device: torch.device) -> Plan:
    """Plan the embedding of each training image, and of its mirror image where training flips."""
    size, flips = cell.training.precompute_batch_size, 2 if cell.data.flip else 1
    shape = (data.train_count, flips, cell.required_teacher.width)
    result = torch.zeros(shape, device=device)
    images = torch.arange(data.train_count)
    parts = tuple(
        Part(
            images[start : start + size] % len(data.train.labels),  # a synthetic set repeats
            bool(mirrored),
            images[start : start + size].to(device),
        )
        for mirrored in range(flips)
        for start in range(0, len(images), size)
    )

    def add(part: Part, embedded: Tensor) -> None:
        result[part.places, int(part.mirrored)] = embedded

    def finish(added: int) -> None:
        unreached = torch.zeros(shape[:2], dtype=torch.bool, device=device)
        for part in parts[added:]:
            unreached[part.places, int(part.mirrored)] = True
        _randomise(result, unreached, 0)

    return Plan(data, cell.required_teacher.image_size, result, parts, add, finish)


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
            problem = f"class {number} has no training image to embed"
            raise InputError(problem, where=cell.data.name, key="data.classes")
        chosen.append(found)
    labels = [torch.full((len(rows),), number) for number, rows in enumerate(chosen)]
    return torch.cat(chosen), torch.cat(labels)


def _randomise(result: Tensor, unreached: Tensor, seed: int) -> None:
    """Fill in what a budget left out: a profile's steps cost the same with any values."""
    count = int(unreached.sum())
    if count:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randn((count, result.shape[-1]), generator=generator)
        result[unreached] = drawn.to(result.device)
