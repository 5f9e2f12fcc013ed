"""A checkpoint on disk: one safetensors file, whole or not there, and checked when it is read.

Results folders are passed on, so a checkpoint is read as a stranger's: there is no pickle in it,
and nothing of it is used before names, shapes, types and counts are what they must be.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from kdbench.common.errors import first_line
from kdbench.spec.cell import Cell
from kdbench.spec.settings import Frozen
from kdbench.worker.checkpoints.durable import durably
from kdbench.worker.out_of_memory import is_shortage

#: the running epoch's losses, float64, [steps done in it]
LOSSES = "epoch.losses"

_HEADER, _DIGEST = "kdbench", "digest"
_Number = Annotated[int, Field(ge=0, le=2**62)]
_Accuracy = Annotated[float, Field(ge=0, le=1)]


class UnusableError(Exception):
    """A checkpoint that no training can go on from; the message says why, in a few words."""


@dataclass
class Progress:
    """How far a training is: all that its loop carries from one step to the next."""

    #: the epoch that is being trained, from 0; the number of epochs once all are done
    epoch: int = 0
    #: of the steps done in it
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0
    #: images of it that were classified right, and all
    right: int = 0
    seen: int = 0
    best_accuracy: float | None = None
    best_epoch: int | None = None

    def end_epoch(self, accuracy: float) -> None:
        """Go on to the next epoch, remembering which was the best; of equals, the first."""
        if self.best_accuracy is None or accuracy > self.best_accuracy:
            self.best_accuracy, self.best_epoch = accuracy, self.epoch
        self.epoch += 1
        self.losses, self.seconds, self.right, self.seen = [], 0.0, 0, 0

    @property
    def just_best(self) -> bool:
        """Whether the epoch that has just ended is the best."""
        return not self.losses and self.best_epoch is not None and self.best_epoch == self.epoch - 1


_PROGRESS = {each.name for each in fields(Progress)} - {"losses"}


class Header(Frozen):
    """The progress without its losses, and what the checkpoint belongs to."""

    version: Literal[1] = 1
    run_key: str
    attempt: _Number
    epoch: _Number
    step: _Number
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    right: _Number
    seen: _Number
    best_accuracy: _Accuracy | None
    best_epoch: _Number | None
    #: state of the gradient scaler; None where the training has none
    scaler: dict[str, int | float] | None
    #: how much of the history the checkpoint goes with
    history_bytes: _Number
    history_digest: str

    def check(self, run_key: str, cell: Cell) -> None:
        """Refuse what a run of the cell cannot have written."""
        if self.run_key != run_key:
            raise UnusableError(f"it is of another run ({self.run_key[:40]!r})")
        epochs, batch = cell.training.epochs, cell.training.batch_size
        possible = (
            self.epoch <= epochs
            and self.step < (1 if self.epoch == epochs else cell.steps_per_epoch)
            and self.right <= self.seen == self.step * batch
            and (self.best_epoch is None) == (self.best_accuracy is None) == (self.epoch == 0)
            and (self.best_epoch is None or self.best_epoch < self.epoch)
        )
        if not possible:
            raise UnusableError("what it says of its epoch, steps and images cannot be")

    def progress(self, losses: list[float]) -> Progress:
        """Return the progress that the header and the losses make up."""
        return Progress(losses=losses, **self.model_dump(include=_PROGRESS))


def progress_fields(progress: Progress) -> dict[str, Any]:
    """Return what a header holds of a progress."""
    return {name: getattr(progress, name) for name in _PROGRESS} | {"step": len(progress.losses)}


def write_checkpoint(path: Path, header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Write or replace a checkpoint durably; the tensors are on the host."""
    text = json.dumps(header.model_dump(), allow_nan=False)
    metadata = {"format": "pt", _HEADER: text, _DIGEST: _digest(text, tensors)}
    durably(path, lambda unfinished: save_file(dict(tensors), unfinished, metadata))


def read_checkpoint(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Read a checkpoint's header and tensors, on the host, as they were written.

    Raises:
        UnusableError: it is damaged, or no checkpoint.
    """
    if not path.is_file():
        raise UnusableError("it is not a file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, RuntimeError, ValueError, TypeError, KeyError) as error:
        if is_shortage(error):  # it may be whole, and is not to be thrown away
            raise
        raise UnusableError(f"it is damaged: {first_line(error)[:200]}") from error
    text = metadata.get(_HEADER, "")
    if metadata.get(_DIGEST) != _digest(text, tensors):
        raise UnusableError("it is damaged: its content is not what was written")
    try:
        return Header.model_validate(json.loads(text)), tensors
    except (ValueError, RecursionError) as error:
        raise UnusableError("its header is not one of this version of kdbench") from error


def _digest(header: str, tensors: Mapping[str, Tensor]) -> str:
    """Digest a header's text and all tensors: names, types, shapes and bytes."""
    total = hashlib.blake2b(header.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\n".encode())
        if tensor.numel():
            total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
