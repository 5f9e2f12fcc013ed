"""Training for real: epochs, each evaluated."""

from __future__ import annotations

import math
from time import monotonic
from typing import Any

import torch
from torch import nn

from kdbench.worker.augment import prepare
from kdbench.worker.events import Events
from kdbench.worker.training import Session

_EVALUATION_BATCH = 256


class DivergedError(Exception):
    """The loss is not finite any more."""


def train(session: Session, events: Events) -> None:
    """Train for all epochs, evaluating after each.

    Raises:
        DivergedError: an epoch's mean loss is not finite.
    """
    training = session.cell.training
    schedule = _schedule(session)
    events.emit("plan", epochs=training.epochs, steps=session.cell.steps_per_epoch)
    for epoch in range(training.epochs):
        rate = session.optimizer.param_groups[0]["lr"]
        with events.phase("train", session.probes) as phase:
            trained = _train_epoch(session, events, epoch)
            phase["units"] = trained["steps"]
        with events.phase("evaluate", session.probes):
            tested = evaluate(session)
        events.emit("epoch", epoch=epoch, learning_rate=rate, **trained, **tested)
        if not math.isfinite(trained["train_loss"]):
            raise DivergedError(f"the mean loss of epoch {epoch} is not finite")
        if schedule is not None:
            schedule.step()


def _schedule(session: Session) -> torch.optim.lr_scheduler.LRScheduler | None:
    """Cosine over the epochs; the published code keeps its learning rate."""
    if session.cell.training.loss == "published-code":
        return None
    return torch.optim.lr_scheduler.CosineAnnealingLR(
        session.optimizer, session.cell.training.epochs
    )


def _train_epoch(session: Session, events: Events, epoch: int) -> dict[str, Any]:
    losses, right, seen, seconds = [], 0, 0, 0.0
    for step, draw in enumerate(session.draws(epoch)):
        row, result, batch = session.timed_step(draw)
        emit_step(events, row, "train", step, epoch)
        losses.append(row["loss"])
        seconds += row["seconds"]
        right += int((result.logits.argmax(dim=-1) == batch.labels).sum())
        seen += len(batch.labels)
    return {
        "steps": len(losses),
        "train_seconds": seconds,
        "train_loss": math.fsum(losses) / len(losses),
        "train_accuracy": right / seen,
    }


@torch.no_grad()
def evaluate(session: Session) -> dict[str, Any]:
    """Classify the test images in the training's precision; the student stays in training mode."""
    started = monotonic()
    test, right, loss = session.data.test, 0, 0.0
    with session.evaluating():
        for pixels, labels in test.batches(_EVALUATION_BATCH):
            logits = session.student(prepare(pixels, session.cell.image_size)).logits.float()
            right += int((logits.argmax(dim=-1) == labels).sum())
            loss += float(nn.functional.cross_entropy(logits, labels, reduction="sum"))
    return {
        "test_accuracy": right / len(test.labels),
        "test_loss": loss / len(test.labels),
        "evaluate_seconds": monotonic() - started,
    }


def emit_step(
    events: Events, row: dict[str, Any], phase: str, step: int, epoch: int | None = None
) -> None:
    """Tell of one step."""
    events.emit("step", phase=phase, step=step, epoch=epoch, **row)
