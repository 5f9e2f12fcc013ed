"""Data, teacher and embeddings for a traced training: of the right shapes, without values."""

import gc
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from kdbench.spec.budget import Budget
from kdbench.spec.cell import CellRun
from kdbench.worker.data.augment import Draw
from kdbench.worker.data.dataset import DataSet, is_streamed, load_data
from kdbench.worker.data.images import Images
from kdbench.worker.probes.ledger import Ledger
from kdbench.worker.probes.memory import Probes
from kdbench.worker.training.embeddings import make_plan
from kdbench.worker.training.precompute import Precompute, compute
from kdbench.worker.training.session import Session

HOST = torch.device("cpu")

# One batch to warm up and one more: the others are like it.
_ONE_BATCH = Budget(precompute_min_batches=1, precompute_seconds=1e-9)


class FakeStream:
    """Fake streamed images: only their labels are kept."""

    def __init__(self, count: int, side: int) -> None:
        self.labels = torch.zeros(count, dtype=torch.int64)
        self._side = side

    def images(self, count: int) -> Images:
        """Return a batch as it comes from the stream."""
        return _images(count, self._side)

    def batches(self, size: int, rows: Tensor | None = None) -> Iterator[Images]:
        """Yield batches, as `Images.batches` does."""
        count = len(self.labels if rows is None else rows)
        for start in range(0, count, size):
            yield self.images(min(size, count - start))


class FakeLoader:
    """Makes what a training is set up from, under `FakeTensorMode`.

    `room` is how many bytes of the device are free before anything is allocated; `mark` is called
    when a phase begins, with setup, precompute or release.
    """

    def __init__(
        self, run: CellRun, ledger: Ledger, *, room: float, mark: Callable[[str], None]
    ) -> None:
        self._run, self._ledger, self._room, self._mark = run, ledger, room, mark
        #: the computed embeddings and their cost; None: the method needs none
        self.precomputed: Precompute | None = None

    def phase(self, name: str) -> AbstractContextManager[Any]:
        """Mark the beginning of a phase."""
        self._mark(name)
        return nullcontext()

    def data(self) -> DataSet:
        """Make as many images as the training's device would keep."""
        cell, data = self._run.cell, self._run.cell.data
        if data.source == "synthetic":
            made = load_data(cell, device=HOST)
        else:
            streamed = data.source == "datasets" and is_streamed(data, self._room)
            make: Any = FakeStream if streamed else _images
            train, test = (make(n, data.image_size) for n in (data.train_images, data.test_images))
            made = DataSet(train, test, data.train_images)
        self._ledger.register(made.tensors(), "inputs", "data")
        return made

    def teacher(self, _data: DataSet) -> nn.Module:
        """Build the teacher with fake weights."""
        # transformers takes seconds to import; a student alone does without
        from kdbench.worker.models.teacher import teacher_shape  # noqa: PLC0415

        with unset_fake_temporarily():  # its initialisation needs values
            teacher = teacher_shape(self._run.cell)
        for module in teacher.modules():
            for name, value in module.named_parameters(recurse=False):
                fake = torch.empty(value.shape, dtype=value.dtype)
                module.register_parameter(name, nn.Parameter(fake, requires_grad=False))
            for name, held in module.named_buffers(recurse=False):
                module.register_buffer(name, torch.empty(held.shape, dtype=held.dtype))
        self._ledger.register_module(teacher, "teacher", prefix="teacher")
        return teacher

    def embeddings(self, data: DataSet, teacher: nn.Module) -> Tensor:
        """Run the teacher over two batches, and return embeddings of the whole size."""
        self._mark("precompute")
        cell = self._run.cell
        synthetic = cell.data.model_copy(update={"source": "synthetic"})
        cell = cell.model_copy(update={"data": synthetic})
        plan = make_plan(cell, data, device=HOST, seed=self._run.seed)
        self._ledger.register([plan.result], "teacher", cell.method_spec.teacher.replace("-", "_"))
        self._ledger.mark("teacher")
        done = compute(plan, teacher, budget=_ONE_BATCH, probes=Probes(HOST))
        self._ledger.mark("setup")
        self.precomputed = done
        return done.embeddings

    def release(self) -> None:
        """Free the teacher, as a measured run does."""
        gc.collect()
        self._mark("release")


def first_draw(session: Session) -> Draw:
    """Draw a training's first batch; streamed images come with it."""
    draw = next(session.draws(0))
    train: Any = session.data.train
    if isinstance(train, FakeStream):
        return draw._replace(fetch=partial(train.images, len(draw.indices)))
    return draw


def _images(count: int, side: int) -> Images:
    return Images(
        torch.empty((count, 3, side, side), dtype=torch.uint8),
        torch.empty(count, dtype=torch.int64),
    )
