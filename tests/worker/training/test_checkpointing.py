"""Checkpointing computes the same, again."""

import pytest
import torch

from kdbench.worker.models import student
from kdbench.worker.training.train import evaluate
from tests.support.models import tiny_session


def trained(folder, *assignments):
    """Losses of ten steps, dropout and all, and the weights after them."""
    session = tiny_session(folder, "embed-kd", *assignments)
    draws = [next(session.draws(epoch)) for epoch in range(10)]
    return [session.timed_step(draw)[0]["loss"] for draw in draws], session.student.state_dict()


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_training_is_the_same_to_the_bit(tmp_path, precision):
    settings = (f'training.precision="{precision}"', "students.small.attention_dropout=0.5")
    losses, weights = trained(tmp_path, *settings)
    again_losses, again_weights = trained(tmp_path, *settings, "training.checkpointing=true")
    assert again_losses == losses
    assert list(again_weights) == list(weights)
    for name, value in weights.items():
        assert torch.equal(again_weights[name], value), name


def test_only_training_is_checkpointed(tmp_path, monkeypatch):
    calls = []

    def counted(block, *args, **settings):
        calls.append(settings)
        return checkpoint(block, *args, **settings)

    checkpoint = student.checkpoint
    monkeypatch.setattr(student, "checkpoint", counted)
    session = tiny_session(tmp_path, "student-only", "training.checkpointing=true")
    session.step(next(session.draws(0)))
    assert len(calls) == 2, "one for each block"
    evaluate(session)
    assert len(calls) == 2
    plain = tiny_session(tmp_path, "student-only")
    plain.step(next(plain.draws(0)))
    assert len(calls) == 2
