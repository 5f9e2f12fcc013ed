"""The losses against float64 references written from their definitions, not from the code."""

import math

import numpy as np
import pytest
import torch

from kdbench.spec.method import BUILT_IN
from kdbench.spec.settings import Student as Shape
from kdbench.worker.models.student import Student
from kdbench.worker.training.methods import Batch, Parts, build_forward
from tests.support.models import tiny_run

CLASSES, TEACHER_WIDTH, BATCH = 5, 24, 6


def softmax(scores):
    shifted = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def cross_entropy(scores, targets):
    """Mean of -log softmax(scores)[target]."""
    return -np.mean(
        [math.log(softmax(row)[target]) for row, target in zip(scores, targets, strict=True)]
    )


def cosines(left, right):
    return np.array(
        [[(a @ b) / (np.linalg.norm(a) * np.linalg.norm(b)) for b in right] for a in left]
    )


@pytest.fixture
def parts(tmp_path):
    """A student without dropout, a teacher that is a fixed linear map, and class embeddings."""
    torch.manual_seed(3)
    shape = Shape(patch_size=4, width=16, depth=2, heads=2, attention_dropout=0.0)
    student = Student(
        shape, image_size=8, classes=CLASSES, teacher_width=TEACHER_WIDTH, attention="eager"
    )
    weight = torch.randn(3 * 16 * 16, TEACHER_WIDTH)
    widths = dict.fromkeys(BUILT_IN, TEACHER_WIDTH) | {"vanilla-kd": CLASSES}

    def make(method, *assignments):
        training = tiny_run(tmp_path, method, *assignments).cell.training
        return Parts(
            student=student,
            training=training,
            teacher=lambda images: images.flatten(1) @ weight[:, : widths[method]],
            class_embeddings=torch.randn(
                CLASSES, TEACHER_WIDTH, generator=torch.Generator().manual_seed(1)
            ),
        )

    return make


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(2)
    return Batch(
        images=torch.randn(BATCH, 3, 8, 8, generator=generator),
        labels=torch.randint(0, CLASSES, (BATCH,), generator=generator),
        teacher_images=torch.randn(BATCH, 3, 16, 16, generator=generator),
        teacher_embeddings=torch.randn(BATCH, TEACHER_WIDTH, generator=generator),
    )


def pieces(parts, batch):
    """Student's features, scores and projection as float64 arrays."""
    output = parts.student(batch.images)
    projection = parts.student.projection
    weight = projection.weight.detach().double().numpy()
    bias = projection.bias.detach().double().numpy()

    def project(embeddings):
        return embeddings.detach().double().numpy() @ weight.T + bias

    return (
        output.features.detach().double().numpy(),
        output.logits.detach().double().numpy(),
        project,
    )


def reference(method, loss, parts, batch, alpha1, alpha2):
    features, scores, project = pieces(parts, batch)
    labels = batch.labels.numpy()
    classification = cross_entropy(softmax(scores) if loss == "published-code" else scores, labels)
    if method == "student-only":
        return classification
    if method == "vanilla-kd":
        taught = softmax(parts.teacher(batch.teacher_images).double().numpy())
        predicted = softmax(softmax(scores) if loss == "published-code" else scores)
        distillation = -np.mean((taught * np.log(predicted)).sum(axis=-1))
        return weighed(classification, distillation, loss, alpha1, alpha2)
    if method == "teacher-kd":
        anchors, targets = project(parts.teacher(batch.teacher_images)), np.arange(BATCH)
    elif method == "cached-kd":
        anchors, targets = project(batch.teacher_embeddings), np.arange(BATCH)
    else:
        anchors, targets = project(parts.class_embeddings), labels
    distillation = cross_entropy(cosines(features, anchors), targets)
    return weighed(classification, distillation, loss, alpha1, alpha2)


def weighed(classification, distillation, loss, alpha1, alpha2):
    if loss == "published-code":
        return classification + 0.5 * distillation
    return alpha1 * classification + alpha2 * distillation


@pytest.mark.parametrize("method", BUILT_IN)
@pytest.mark.parametrize(
    ("loss", "alpha2"), [("paper", 0.5), ("paper", 0.2), ("published-code", 0.5)]
)
def test_losses(method, loss, alpha2, parts, batch):
    made = parts(method, f'training.loss="{loss}"', f"training.alpha2={alpha2}")
    result = build_forward(BUILT_IN[method], made)(batch, lambda _: None)
    expected = reference(method, loss, made, batch, 1 - alpha2, alpha2)
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_the_weights_of_the_losses_can_be_set_apart(parts, batch):
    made = parts("embed-kd", "training.alpha1=2.0", "training.alpha2=3.0")
    result = build_forward(BUILT_IN["embed-kd"], made)(batch, lambda _: None)
    expected = reference("embed-kd", "paper", made, batch, 2.0, 3.0)
    assert float(result.loss.detach()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["embed-kd", "teacher-kd"])
def test_gradients_reach_the_projection_but_not_the_teacher(method, parts, batch):
    made = parts(method)
    seen = []

    def teacher(images):
        embeddings = (images.flatten(1)[:, :TEACHER_WIDTH] * weight).requires_grad_()
        seen.append(embeddings)
        return embeddings

    weight = torch.ones(1, requires_grad=True)
    changed = Parts(
        student=made.student,
        training=made.training,
        teacher=teacher,
        class_embeddings=made.class_embeddings,
    )
    build_forward(BUILT_IN[method], changed)(batch, lambda _: None).loss.backward()
    assert made.student.projection.weight.grad.abs().sum() > 0
    assert weight.grad is None
    assert len(seen) == (1 if method == "teacher-kd" else 0), "Embed-KD never calls the teacher"


def test_the_parts_of_a_step_are_marked_in_order(parts, batch):
    marks = []
    build_forward(BUILT_IN["teacher-kd"], parts("teacher-kd"))(batch, marks.append)
    assert marks == ["teacher", "forward"]


def test_a_method_without_what_it_needs_says_so(parts, batch):
    bare = Parts(student=parts("embed-kd").student, training=parts("embed-kd").training)
    with pytest.raises(RuntimeError, match="class embeddings"):
        build_forward(BUILT_IN["embed-kd"], bare)
    with pytest.raises(RuntimeError, match="a teacher"):
        build_forward(BUILT_IN["teacher-kd"], bare)
