"""How a training is set up: data, teacher, what the method has computed before, and the student.

Where these come from is the caller's to say: `measure.py` loads them, `kdbench.predict` fakes their
shapes. The order in which they come and go is the same for both, since a prediction is only as good
as the set-up that it traces.
"""

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from kdbench.spec.cell import CellRun
from kdbench.worker.data.dataset import DataSet
from kdbench.worker.probes.memory import Probes
from kdbench.worker.training.precision import check_precision, set_precision
from kdbench.worker.training.session import Session, build_session


class Loader(Protocol):
    """Provides what a training is set up from."""

    def phase(self, name: str) -> AbstractContextManager[Any]:
        """Enter a phase of the run: setup."""

    def data(self) -> DataSet:
        """Return the images."""

    def teacher(self, data: DataSet) -> nn.Module:
        """Return the cell's teacher, which scores the data's classes or embeds its images."""

    def embeddings(self, data: DataSet, teacher: nn.Module) -> Tensor:
        """Return what the method needs of the teacher, in a phase of its own: precompute."""

    def release(self) -> None:
        """Give freed memory back to the device."""


def set_up(run: CellRun, loader: Loader, *, device: torch.device, probes: Probes) -> Session:
    """Set a run's training up."""
    cell, teacher, embeddings = run.cell, None, None
    with loader.phase("setup"):
        # before the teacher's work, which can take long...
        check_precision(cell.training.precision, device)
        # ...and is done in fp32, whatever the session computes in: cells share its result
        set_precision("fp32", device)
        data = loader.data()
        if cell.teacher is not None:
            teacher = loader.teacher(data)
    if cell.method_spec.precomputes and teacher is not None:
        embeddings = loader.embeddings(data, teacher)
        # The teacher has done its work: nothing of it stays for the training.
        teacher = None
        loader.release()
    with loader.phase("setup"):
        return build_session(
            cell,
            device=device,
            seed=run.seed,
            data=data,
            teacher=teacher,
            embeddings=embeddings,
            probes=probes,
        )
