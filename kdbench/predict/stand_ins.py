"""Stand-ins for what a training is set up from: of the same shapes, without values."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from kdbench.spec.budget import Budget
from kdbench.spec.cell import Cell, CellRun
from kdbench.worker.data.augment import Draw
from kdbench.worker.data.dataset import KEPT_SHARE, DataSet, load_data
from kdbench.worker.data.images import Images
from kdbench.worker.probes.ledger import Ledger
from kdbench.worker.probes.memory import Probes
from kdbench.worker.training.embeddings import make_plan
from kdbench.worker.training.precompute import Precompute, compute
from kdbench.worker.training.session import Session

HOST = torch.device("cpu")

# One batch to warm up and one more: the others are like it.
_ONE_BATCH = Budget(precompute_min_batches=1, precompute_seconds=1e-9)


class Unread:
    """Stands for streamed images: only their labels are kept."""

    def __init__(self, count: int, side: int) -> None:
        self.labels = torch.zeros(count, dtype=torch.int64)
        self._side = side

    def images(self, count: int) -> Images:
        """Return so many of them as they come from the stream."""
        return Images(
            torch.empty((count, 3, self._side, self._side), dtype=torch.uint8),
            torch.empty(count, dtype=torch.int64),
        )

    def batches(self, size: int, rows: Tensor | None = None) -> Iterator[Images]:
        """Yield batches, as `Images.batches` does."""
        count = len(self.labels if rows is None else rows)
        for start in range(0, count, size):
            yield self.images(min(size, count - start))


class StandIns:
    """A training's supplies, made up under `FakeTensorMode`.

    Args:
        run: what to set up; its cell's data are taken for synthetic ones.
        ledger: counts; it is told what each thing is, and which phase begins.
        room: bytes that are free on the device before anything is allocated; None: not known, and
            images are kept on it.
        mark: told when a phase begins: setup or precompute.
    """

    def __init__(
        self, run: CellRun, ledger: Ledger, *, room: int | None, mark: Callable[[str], None]
    ) -> None:
        self._run, self._ledger, self._room, self._mark = run, ledger, room, mark
        #: what computing the embeddings came to; None: the method has none
        self.precomputed: Precompute | None = None

    def phase(self, name: str) -> AbstractContextManager[Any]:
        """Say that a phase begins."""
        self._mark(name)
        return nullcontext()

    def data(self) -> DataSet:
        """Make images up, as many as the training's device would keep."""
        data = self._made_up()
        self._ledger.adopt(data.tensors(), "inputs", "data")
        return data

    def teacher(self, _data: DataSet) -> nn.Module:
        """Build the teacher's shape; its weights are nobody's."""
        # transformers takes seconds to import; a student alone does without
        from kdbench.worker.models.teacher import teacher_shape  # noqa: PLC0415

        cell = self._run.cell
        with unset_fake_temporarily():  # its initialisation would want values
            teacher = teacher_shape(cell)
        for module in teacher.modules():
            for name, value in module.named_parameters(recurse=False):
                room = torch.empty(value.shape, dtype=value.dtype)
                module.register_parameter(name, nn.Parameter(room, requires_grad=False))
            for name, held in module.named_buffers(recurse=False):
                module.register_buffer(name, torch.empty(held.shape, dtype=held.dtype))
        self._ledger.adopt_module(teacher, "teacher", prefix="teacher")
        return teacher

    def embeddings(self, data: DataSet, teacher: nn.Module) -> Tensor:
        """Run the teacher over two batches, and give back room for what all would come to."""
        self._mark("precompute")
        cell = self._run.cell
        made_up = cell.data.model_copy(update={"source": "synthetic"})
        cell = cell.model_copy(update={"data": made_up})
        plan = make_plan(cell, data, device=HOST, seed=self._run.seed)
        self._ledger.adopt([plan.result], "teacher", cell.method_spec.teacher.replace("-", "_"))
        self._ledger.mark("teacher")
        done = compute(plan, cell, data, teacher, budget=_ONE_BATCH, probes=Probes(HOST), key=None)
        self._ledger.mark("setup")
        self.precomputed = done
        return done.embeddings

    def release(self) -> None:
        """Let go of the teacher, as a measured run does."""
        gc.collect()
        self._mark("release")

    def _made_up(self) -> DataSet:
        cell = self._run.cell
        data = cell.data
        if data.source == "synthetic":
            return load_data(cell, device=HOST)
        side, counts = data.image_size, (data.train_images, data.test_images)
        if self._streams(cell):
            sets = [Unread(count, side) for count in counts]
            return DataSet(sets[0], sets[1], data.train_images)  # type: ignore[arg-type]
        kept = [
            Images(
                torch.empty((count, 3, side, side), dtype=torch.uint8),
                torch.empty(count, dtype=torch.int64),
            )
            for count in counts
        ]
        return DataSet(kept[0], kept[1], data.train_images)

    def _streams(self, cell: Cell) -> bool:
        data = cell.data
        if data.source != "datasets" or data.storage == "device":
            return False
        if data.storage == "stream":
            return True
        size = (data.train_images + data.test_images) * 3 * data.image_size**2
        return self._room is not None and size > KEPT_SHARE * self._room


def first_draw(session: Session) -> Draw:
    """Draw a training's first batch; streamed images come with it."""
    draw = next(session.draws(0))
    train: Any = session.data.train
    if isinstance(train, Unread):
        return draw._replace(fetch=partial(train.images, len(draw.indices)))
    return draw
