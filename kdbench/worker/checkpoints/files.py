"""A checkpoint on disk: one safetensors file, whole or not there, and checked when it is read.

Results folders are passed on, so a checkpoint is read as a stranger's: there is no pickle in it,
and nothing of it is used before names, shapes, types and counts are what they must be.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

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
class Standing:
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


class Header(Frozen):
    """What a checkpoint says of itself: the rest of the standing, and what it belongs to."""

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
        """Check that a run of a cell can be where this says it is.

        Raises:
            UnusableError: it cannot.
        """
        if self.run_key != run_key:
            raise UnusableError(f"it is of another run ({self.run_key[:40]!r})")
        epochs, batch = cell.training.epochs, cell.training.batch_size
        whole = self.epoch == epochs
        possible = (
            self.epoch <= epochs
            and self.step < (1 if whole else cell.steps_per_epoch)
            and self.right <= self.seen == self.step * batch
            and (self.best_epoch is None) == (self.best_accuracy is None) == (self.epoch == 0)
            and (self.best_epoch is None or self.best_epoch < self.epoch)
        )
        if not possible:
            raise UnusableError("what it says of its epoch, steps and images cannot be")

    def standing(self, losses: list[float]) -> Standing:
        """Return the standing that the header and the losses beside it make up."""
        return Standing(
            epoch=self.epoch,
            losses=losses,
            seconds=self.seconds,
            right=self.right,
            seen=self.seen,
            best_accuracy=self.best_accuracy,
            best_epoch=self.best_epoch,
        )


def write_checkpoint(path: Path, header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Write a checkpoint, which is there as a whole or not at all, whenever the power goes.

    Args:
        path: the file; what is there is replaced.
        header: what the checkpoint says of itself.
        tensors: by name, on the host.

    Raises:
        OSError, SafetensorError: it cannot be written.
    """
    told = json.dumps(header.model_dump(), allow_nan=False)
    metadata = {"format": "pt", _HEADER: told, _DIGEST: _digest(told, tensors)}
    durably(path, lambda unfinished: save_file(dict(tensors), unfinished, metadata))


def read_checkpoint(path: Path) -> tuple[Header, dict[str, Tensor]]:
    """Read a checkpoint, and check that it is what was written.

    Returns:
        Its header, and its tensors on the host by name. Whether they fit a training is for
        others to check.

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
        told = (str(error).splitlines() or [""])[0][:200]
        raise UnusableError(f"it is damaged: {told}") from error
    told = metadata.get(_HEADER, "")
    if metadata.get(_DIGEST) != _digest(told, tensors):
        raise UnusableError("it is damaged: its content is not what was written")
    try:
        header = Header.model_validate(json.loads(told))
    except (ValueError, RecursionError) as error:
        raise UnusableError("its header is not one of this version of kdbench") from error
    return header, tensors


def _digest(told: str, tensors: Mapping[str, Tensor]) -> str:
    """Digest of a header's text and of all tensors: names, types, shapes and bytes."""
    total = hashlib.blake2b(told.encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\n".encode())
        if tensor.numel():
            total.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
