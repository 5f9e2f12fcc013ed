"""The methods: what each makes of a batch. One loop runs them all (`train.py`).

What a method needs of its teacher is declared in `kdbench.spec.method`; here is the step itself. A
package that adds a method writes a function like those below: `Parts` in, `Forward` out. Layers
of its own it gives to `Parts.own`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.common.errors import InputError
from kdbench.spec.method import Method
from kdbench.spec.settings import Training
from kdbench.worker.models.student import Student
from kdbench.worker.training.method_layers import Layer, OwnLayers, contents, take_attached

Value = TypeVar("Value")
Mark = Callable[[str], None]


class Batch(NamedTuple):
    """A batch on the training device."""

    #: [batch, 3, side, side], normalised
    images: Tensor
    #: [batch], int64
    labels: Tensor
    #: the same images at the teacher's size, where the method runs the teacher on them
    teacher_images: Tensor | None = None
    #: the teacher's embeddings of these images, mirrored as they are, [batch, teacher width];
    #: where the method has them computed before the first step
    teacher_embeddings: Tensor | None = None


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
    #: maps images [n, 3, side, side] to embeddings [n, width], or to class scores [n, classes] for
    #: a method that declares a classifier; None where the step has no teacher
    teacher: Callable[[Tensor], Tensor] | None = None
    #: mean teacher embedding of each class, [classes, teacher width]
    class_embeddings: Tensor | None = None
    #: of the teacher's embeddings; None where there is no teacher, or it scores classes
    teacher_width: int | None = None
    #: what `own` was given
    layers: OwnLayers = field(default_factory=OwnLayers)

    @property
    def device(self) -> torch.device:
        """Where the student is."""
        return self.student.class_token.device

    def own(self, name: str, layer: Layer) -> Layer:
        """Have a layer of the method's own trained with the student.

        To be called while the step is built. The layer is in the optimizer, in checkpoints and in
        the figures of parameters and memory, as `method.<name>`.

        Args:
            name: an identifier, another for each layer.
            layer: a module or a parameter; of a module all its parameters and buffers.

        Returns:
            The layer, on the training's device.

        Raises:
            InputError: it is no such layer, or has the student's or the teacher's parameters.
        """
        others = [part for part in (self.student, self.teacher) if isinstance(part, nn.Module)]
        return self.layers.add(name, layer, device=self.device, others=others)


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
        return _found_among_batch(parts, batch, embeddings)

    return forward


def cached_kd(parts: Parts) -> Forward:
    """Cached-KD: Teacher-KD's loss, from embeddings of each image that were computed before."""

    def forward(batch: Batch, mark: Mark) -> StepResult:
        mark("forward")
        embeddings = _needed(batch.teacher_embeddings, "the images' embeddings")
        return _found_among_batch(parts, batch, embeddings)

    return forward


def vanilla_kd(parts: Parts) -> Forward:
    """Vanilla KD: the teacher classifies every batch; the student shall predict as it does.

    The distillation loss is the cross entropy of the student's prediction against the teacher's
    softmax (Hinton et al. 2015, at temperature 1).
    """
    teacher = _needed(parts.teacher, "a teacher")

    def forward(batch: Batch, mark: Mark) -> StepResult:
        mark("teacher")
        with torch.no_grad():
            scores = teacher(_needed(batch.teacher_images, "the teacher's images"))
            targets = scores.softmax(dim=-1)
        mark("forward")
        logits = parts.student(batch.images).logits
        distillation = F.cross_entropy(_predictions(parts.training, logits), targets)
        return combined(parts.training, logits, batch.labels, distillation)

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
        return combined(parts.training, logits, batch.labels, distillation)

    return forward


def student_only(parts: Parts) -> Forward:
    """Student alone: the control, by the classification loss."""

    def forward(batch: Batch, mark: Mark) -> StepResult:
        mark("forward")
        logits = parts.student(batch.images).logits
        return combined(parts.training, logits, batch.labels, None)

    return forward


def build_forward(method: Method, parts: Parts) -> Forward:
    """Find a method's step by the name that it declares, and build its forward pass.

    Afterwards `parts.layers` has all that is the method's, and the student is what it was: layers
    that were put on it, or that the forward pass has as a module, count as the method's own.

    Raises:
        InputError: there is no such function, or what it makes cannot be trained.
    """
    module, _, name = method.step.partition(":")
    try:
        build: Callable[[Parts], Forward] = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"cannot find the method's step {method.step!r}: {error}",
            hint="mend or remove the package that declares it",
        ) from error
    before = contents(parts.student)
    try:
        forward = build(parts)
        _take_layers(parts, before, forward)
        parts.layers.closed_by = method.step
    except InputError as error:
        raise error.at(method.step) from error
    return forward


def _take_layers(parts: Parts, before: dict[str, object], forward: Forward) -> None:
    attached = take_attached(parts.student, before)
    step = getattr(forward, "__self__", forward)  # a module's method, or a module
    if isinstance(step, nn.Module) and step is not parts.student:
        attached.append(("step", step))
    for name, layer in attached:
        if not parts.layers.has(layer):
            parts.own(name, layer)


def cosine_logits(features: Tensor, anchors: Tensor) -> Tensor:
    """Cosines of features [n, width] with anchors [m, width], as [n, m]; no temperature."""
    return F.normalize(features, dim=-1) @ F.normalize(anchors, dim=-1).T


def combined(
    training: Training, logits: Tensor, labels: Tensor, distillation: Tensor | None
) -> StepResult:
    """Weigh the losses: alpha1 * L_ce + alpha2 * distillation.

    Args:
        training: holds alpha1 and alpha2.
        logits: the student's raw class scores, [batch, classes].
        labels: int64, [batch].
        distillation: the method's own loss, a scalar; None: it has none.
    """
    classification = F.cross_entropy(_predictions(training, logits), labels)
    loss = _needed(training.alpha1, "alpha1") * classification
    if distillation is not None:
        loss = loss + training.alpha2 * distillation
    return StepResult(loss, logits)


def _found_among_batch(parts: Parts, batch: Batch, embeddings: Tensor) -> StepResult:
    """Each image must find its own embedding among the batch's."""
    features, logits = parts.student(batch.images)
    similarity = cosine_logits(features, parts.student.project(embeddings))
    own = torch.arange(len(features), device=features.device)
    return combined(parts.training, logits, batch.labels, F.cross_entropy(similarity, own))


def _predictions(training: Training, logits: Tensor) -> Tensor:
    """Make of the scores what cross entropies are fed; the published code softmaxes them first."""
    return logits.softmax(dim=-1) if training.loss == "published-code" else logits


def _needed(value: Value | None, what: str) -> Value:
    if value is None:
        raise RuntimeError(f"this method needs {what}, and was given none")
    return value
