"""The methods: what each makes of a batch. One loop runs them all (`training.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.cell import Method, Training
from kdbench.worker.student import Student

Value = TypeVar("Value")
Mark = Callable[[str], None]


class Batch(NamedTuple):
    """A batch on the training device."""

    #: [batch, 3, side, side], normalised
    images: Tensor
    #: [batch], int64
    labels: Tensor
    #: the same images at the teacher's size, where the method runs the teacher on them
    teacher_images: Tensor | None


class StepResult(NamedTuple):
    """A forward pass."""

    #: scalar to minimise
    loss: Tensor
    #: the student's raw class scores, [batch, classes]
    logits: Tensor


Forward = Callable[[Batch, Mark], StepResult]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a method may use."""

    student: Student
    training: Training
    #: maps images [n, 3, side, side] to embeddings [n, width]; None where the step has no teacher
    teacher: Callable[[Tensor], Tensor] | None = None
    #: mean teacher embedding of each class, [classes, teacher width]
    class_embeddings: Tensor | None = None


def teacher_kd(parts: Parts) -> Forward:
    """Teacher-KD: the teacher embeds every batch; image i must find its own embedding.

    Logits are [batch, batch]; the target of row i is column i.
    """
    teacher = _needed(parts.teacher, "a teacher")

    def forward(batch: Batch, mark: Mark) -> StepResult:
        mark("teacher")
        with torch.no_grad():
            embeddings = teacher(_needed(batch.teacher_images, "the teacher's images"))
        mark("forward")
        features, logits = parts.student(batch.images)
        similarity = cosine_logits(features, parts.student.project(embeddings))
        own = torch.arange(len(features), device=features.device)
        return _combined(parts.training, logits, batch.labels, F.cross_entropy(similarity, own))

    return forward


def embed_kd(parts: Parts) -> Forward:
    """Embed-KD: no teacher; an image must find its class's embedding.

    Logits are [batch, classes]; the target is the label.
    """
    embeddings = _needed(parts.class_embeddings, "class embeddings")

    def forward(batch: Batch, mark: Mark) -> StepResult:
        mark("forward")
        features, logits = parts.student(batch.images)
        similarity = cosine_logits(features, parts.student.project(embeddings))
        distillation = F.cross_entropy(similarity, batch.labels)
        return _combined(parts.training, logits, batch.labels, distillation)

    return forward


def student_only(parts: Parts) -> Forward:
    """Student alone: the control, by the classification loss."""

    def forward(batch: Batch, mark: Mark) -> StepResult:
        mark("forward")
        logits = parts.student(batch.images).logits
        return _combined(parts.training, logits, batch.labels, None)

    return forward


METHODS: dict[Method, Callable[[Parts], Forward]] = {
    "teacher-kd": teacher_kd,
    "embed-kd": embed_kd,
    "student-only": student_only,
}


def cosine_logits(features: Tensor, anchors: Tensor) -> Tensor:
    """Cosines of features [n, width] with anchors [m, width], as [n, m]; no temperature."""
    return F.normalize(features, dim=-1) @ F.normalize(anchors, dim=-1).T


def _combined(
    training: Training, logits: Tensor, labels: Tensor, distillation: Tensor | None
) -> StepResult:
    """alpha1 * L_ce + alpha2 * L_clip; the published code feeds softmaxed scores to L_ce."""
    predictions = logits.softmax(dim=-1) if training.loss == "published-code" else logits
    loss = _needed(training.alpha1, "alpha1") * F.cross_entropy(predictions, labels)
    if distillation is not None:
        loss = loss + training.alpha2 * distillation
    return StepResult(loss, logits)


def _needed(value: Value | None, what: str) -> Value:
    if value is None:
        raise RuntimeError(f"this method needs {what}, and was given none")
    return value
