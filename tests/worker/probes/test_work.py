"""Floating-point operations, against hand counts and torch's own counter."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from kdbench.worker.probes.account import account_step
from kdbench.worker.probes.work import WorkCounter
from tests.support.models import tiny_session


def counted(folder, method, *settings):
    session = tiny_session(folder, method, *settings)
    session.timed_step(next(session.draws(0)))
    return session, account_step(session, next(session.draws(1))).work.flops


def of_blocks(session, *, passes):
    """Forward passes of the blocks: products with weights, and attention's two."""
    cell = session.cell
    shape, batch = cell.student, cell.training.batch_size
    tokens = (cell.image_size // shape.patch_size) ** 2 + 1
    weights = 12 * shape.width**2  # query, key, value and output; a fourfold MLP there and back
    products = 2 * batch * tokens * weights
    attention = 2 * 2 * batch * tokens**2 * shape.width
    return passes * shape.depth * (products + attention)


def of_ends(session, *, projects):
    """Forward and backward of what lies before and behind the blocks."""
    cell = session.cell
    shape, batch, classes = cell.student, cell.training.batch_size, cell.data.classes
    patches = (cell.image_size // shape.patch_size) ** 2
    # no gradient goes to images or to the teacher's embeddings: two passes instead of three
    convolution = 2 * 2 * batch * patches * shape.width * 3 * shape.patch_size**2
    classifier = 3 * 2 * batch * shape.width * classes
    if not projects:
        return convolution + classifier
    projection = 2 * 2 * classes * cell.required_teacher.width * shape.width
    similarity = 3 * 2 * batch * shape.width * classes
    return convolution + classifier + projection + similarity


def test_a_linear_layer():
    layer, images = nn.Linear(8, 3), torch.ones(5, 8)
    with WorkCounter() as counter:
        result = layer(images)
    assert counter.flops == 2 * 5 * 8 * 3
    with counter:
        result.sum().backward()
    assert counter.flops == 2 * (2 * 5 * 8 * 3), "the weights' gradient, and none of the images"


def test_element_wise_work_is_not_counted():
    with WorkCounter() as counter:
        (torch.ones(50, 50).exp() + 1).softmax(-1).sum()
    assert counter.flops == 0


@pytest.mark.parametrize(("method", "projects"), [("student-only", False), ("embed-kd", True)])
def test_a_step_by_the_students_shape(tmp_path, method, projects):
    session, flops = counted(tmp_path, method)
    assert flops == of_blocks(session, passes=3) + of_ends(session, projects=projects)


def test_checkpointing_computes_the_blocks_once_more(tmp_path):
    session, plain = counted(tmp_path, "student-only")
    _, again = counted(tmp_path, "student-only", "training.checkpointing=true")
    # but for the last product, whose result nothing needs again: torch stops before it
    least = of_blocks(session, passes=1) * 0.5
    assert least < again - plain <= of_blocks(session, passes=1)


def test_fused_attention_counts_as_plain_attention_does(tmp_path):
    """Without dropout, which the CPU's fused kernel lacks; its backward makes the weights anew."""
    still = "students.small.attention_dropout=0.0"
    session, plain = counted(tmp_path, "embed-kd", still)
    _, fused = counted(tmp_path, "embed-kd", still, 'training.attention="sdpa"')
    _, dropped = counted(tmp_path, "embed-kd", 'training.attention="sdpa"')
    shape, tokens = session.cell.student, (8 // session.cell.student.patch_size) ** 2 + 1
    scores = 2 * session.cell.training.batch_size * tokens**2 * shape.width
    assert dropped == plain
    assert fused == plain + shape.depth * scores


@pytest.mark.parametrize("method", ["teacher-kd", "cached-kd", "student-only"])
def test_torchs_own_counter_says_the_same(tmp_path, method):
    session, flops = counted(tmp_path, method)
    with FlopCounterMode(display=False) as torchs:
        session.step(next(session.draws(2)))
    # torch has no formula for the fused attention that the teacher uses on a CPU
    teacher = session.cell.required_teacher if method == "teacher-kd" else None
    missing = 0
    if teacher is not None:
        tokens = (teacher.image_size // teacher.patch_size) ** 2 + 1
        missing = 4 * session.cell.training.batch_size * tokens**2 * teacher.width * teacher.depth
    assert flops == torchs.get_total_flops() + missing


def test_operations_are_what_computes():
    layer, images = nn.Linear(8, 3), torch.ones(5, 8)
    optimizer = torch.optim.SGD(layer.parameters())
    with WorkCounter() as counter:
        layer(images).view(15)
        room = torch.empty(100)
        optimizer.zero_grad()
    assert counter.operations == 1, "the product with its bias; no view, no room, no mark"
    assert counter.bytes_moved == 4 * (5 * 8 + 8 * 3 + 3 + 5 * 3)
    with counter:
        room.fill_(0)
    assert counter.operations == 2
