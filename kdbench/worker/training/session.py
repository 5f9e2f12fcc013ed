"""The one training loop's step, and what it needs; profile and train both run it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from kdbench.spec.cell import Cell
from kdbench.spec.method import BUILT_IN
from kdbench.spec.preprocessing import CLIP
from kdbench.spec.settings import OptimizerKernels
from kdbench.worker.data.augment import Draw, epoch_draws, make_batch, wanted_by
from kdbench.worker.data.dataset import DataSet
from kdbench.worker.models.student import Student
from kdbench.worker.probes.clock import StepClock, step_clock
from kdbench.worker.probes.memory import Probes
from kdbench.worker.probes.oracle import storage_bytes
from kdbench.worker.training.compiled import compile_lazily, compile_now, eagerly
from kdbench.worker.training.method_layers import OwnLayers, Strays
from kdbench.worker.training.methods import Batch, Forward, Mark, Parts, StepResult, build_forward
from kdbench.worker.training.precision import autocast, make_scaler, set_precision

# How torch takes a choice of an optimizer's kernels; without one it chooses by the device.
_KERNELS: dict[OptimizerKernels, dict[str, Any]] = {
    "auto": {},
    "single": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


@dataclass(kw_only=True)
class Session:
    """A training that is set up: call `step` with a draw of images."""

    cell: Cell
    device: torch.device
    seed: int
    data: DataSet
    student: Student
    #: the method's own layers, which are trained with the student; empty where it has none
    layers: OwnLayers
    optimizer: torch.optim.Optimizer
    #: scales the loss of an fp16 training, and is part of its state; None for the others
    scaler: torch.amp.GradScaler | None
    forward: Forward
    strays: Strays
    probes: Probes
    clock: StepClock
    #: the module that the step runs on every batch; None where it runs none
    teacher: nn.Module | None
    #: computed before the first step: [classes, width] or [images, flips, width]
    embeddings: torch.Tensor | None

    @property
    def trained(self) -> dict[str, nn.Module]:
        """What the optimizer trains, in its order, by the name that its parts go under."""
        return {"student": self.student, "method": self.layers}

    def draws(self, epoch: int) -> Iterator[Draw]:
        """Draw an epoch's batches."""
        return epoch_draws(
            self.data,
            batch_size=self.cell.training.batch_size,
            flip=self.cell.data.flip,
            crop=self.cell.data.crop,
            seed=self.seed,
            epoch=epoch,
            device=self.device,
        )

    def step(self, draw: Draw, mark: Mark = lambda _: None) -> tuple[StepResult, Batch]:
        """Run one optimizer step, calling `mark` as each part begins: data, forward, optimizer...

        The loss returned holds no graph, and no scale.
        """
        mark("data")
        batch = make_batch(
            self.data.train,
            draw,
            image_size=self.cell.image_size,
            teacher_size=self.cell.required_teacher.image_size if self.teacher else None,
            teacher_how=CLIP if self.teacher is None else wanted_by(self.teacher),
        )
        if self.embeddings is not None and self.cell.method_spec.teacher == "image-embeddings":
            batch = batch._replace(teacher_embeddings=_of_images(self.embeddings, draw))
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(self.cell.training.precision, self.device):
            result = self.forward(batch, mark)
        self.strays.look(result.loss)
        mark("backward")
        if self.scaler is None:
            result.loss.backward()
            mark("optimizer")
            self.optimizer.step()
        else:
            self.scaler.scale(result.loss).backward()
            mark("optimizer")
            self.scaler.step(self.optimizer)  # unscales; leaves the weights where it overflowed
            self.scaler.update()
        return StepResult(result.loss.detach(), result.logits.detach()), batch

    def compile(self) -> None:
        """Have torch compile the student for the step's batches; the training stays as it was."""
        images, size = self.data.train, self.cell.image_size
        batch = make_batch(images, next(self.draws(0)), image_size=size, teacher_size=None)
        with autocast(self.cell.training.precision, self.device):
            compile_now(self.student, batch.images)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Have all layers in evaluation mode, in the training's precision, and not compiled.

        The precision is the training's, because that is how such a student would be used: an
        accuracy belongs to the arithmetic as much as to the weights.
        """
        modes = [(part, part.training) for m in self.trained.values() for part in m.modules()]
        for module in self.trained.values():
            module.eval()
        with (
            autocast(self.cell.training.precision, self.device),
            eagerly(compiled=self.cell.training.compile),
        ):
            yield
        for part, training in modes:  # a method may have frozen parts of its own
            part.training = training

    def timed_step(self, draw: Draw) -> tuple[dict[str, Any], StepResult, Batch]:
        """Run one step under the clock; returns its row as well."""
        self.probes.start_step()
        self.clock.start()
        result, batch = self.step(draw, self.clock.mark)
        row = {**self.clock.stop(), **self.probes.step_peaks(), "loss": float(result.loss)}
        return row, result, batch


def build_session(
    cell: Cell,
    *,
    device: torch.device,
    seed: int,
    data: DataSet,
    teacher: nn.Module | None,
    embeddings: torch.Tensor | None,
    probes: Probes,
) -> Session:
    """Build student, method and optimizer.

    The seed is set here and nowhere before: a seed gives every method the same student, whatever
    the method computed earlier or draws for its own layers.
    """
    training, declared = cell.training, cell.method_spec
    set_precision(training.precision, device)
    torch.manual_seed(seed)
    student = Student(
        cell.student,
        image_size=cell.image_size,
        classes=cell.data.classes,
        teacher_width=cell.required_teacher.width if declared.uses_projection else None,
        attention=training.attention,
        checkpointing=training.checkpointing,
    ).train()
    if device.type != "cpu":  # where it is already; a prediction's tensors cannot be moved
        student = student.to(device)
    if training.compile:
        compile_lazily(student)
    parts = Parts(
        student=student,
        training=training,
        teacher=teacher,
        class_embeddings=embeddings if declared.teacher == "class-embeddings" else None,
        teacher_width=cell.teacher.width if cell.teacher and not declared.classifier else None,
    )
    forward = build_forward(declared, parts)
    # after the method: it has the method's layers, too
    optimizer = torch.optim.AdamW(
        [*student.parameters(), *parts.layers.parameters()],
        training.learning_rate,
        weight_decay=training.weight_decay,
        **_KERNELS[training.optimizer_kernels],
    )
    return Session(
        cell=cell,
        device=device,
        seed=seed,
        data=data,
        student=student,
        layers=parts.layers,
        optimizer=optimizer,
        scaler=make_scaler(training.precision, device),
        forward=forward,
        strays=Strays(optimizer, None if cell.method in BUILT_IN else declared.step),
        probes=probes,
        clock=step_clock(device),
        teacher=teacher,
        embeddings=embeddings,
    )


def _of_images(embeddings: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Look up a draw's images, mirrored as they are: [batch, width]."""
    if draw.flips is None:
        return embeddings[draw.indices, 0]
    return embeddings[draw.indices, draw.flips.long()]


def parameter_columns(session: Session) -> dict[str, int | None]:
    """Count what a step holds of parameters: columns of `cells`."""
    student, own = (
        sum(p.numel() for p in module.parameters()) for module in session.trained.values()
    )
    return {
        "parameter_bytes": parameter_bytes(*session.trained.values(), session.teacher),
        "student_parameters": student,
        "method_parameters": own or None,
    }


def parameter_bytes(*modules: nn.Module | None) -> int:
    """Bytes of parameters and buffers, shared ones counted once."""
    return storage_bytes(
        tensor
        for module in modules
        if module is not None
        for tensor in [*module.parameters(), *module.buffers()]
    )
