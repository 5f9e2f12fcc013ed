"""Training for real: epochs, each evaluated."""

import itertools
import math
from collections.abc import Iterator
from time import monotonic
from typing import Any

import torch
from torch import nn

from kdbench.spec.settings import Training
from kdbench.worker.checkpoints.files import Progress
from kdbench.worker.checkpoints.resume import Checkpoints
from kdbench.worker.data.augment import Draw, prepare
from kdbench.worker.events import Events
from kdbench.worker.training.session import Session

_EVALUATION_BATCH = 256


class DivergedError(Exception):
    """The loss is not finite any more."""


def train(session: Session, events: Events, checkpoints: Checkpoints | None = None) -> None:
    """Train for all epochs, evaluating after each."""
    training = session.cell.training
    events.emit("plan", epochs=training.epochs, steps=session.cell.steps_per_epoch)
    progress = Progress() if checkpoints is None else checkpoints.resume(session)
    while progress.epoch < training.epochs:
        epoch, rate = progress.epoch, learning_rate(training, progress.epoch)
        for group in session.optimizer.param_groups:
            group["lr"] = rate
        _train_epoch(session, events, progress, checkpoints)
        losses, count = progress.losses, len(progress.losses)
        trained = {
            "steps": count,
            "train_seconds": progress.seconds,
            "train_loss": math.fsum(losses) / count,
            "train_accuracy": progress.right / progress.seen,
        }
        with events.phase("evaluate", session.probes):
            tested = evaluate(session)
        events.emit("epoch", epoch=epoch, learning_rate=rate, **trained, **tested)
        if not math.isfinite(trained["train_loss"]):
            raise DivergedError(f"the mean loss of epoch {epoch} is not finite")
        progress.end_epoch(tested["test_accuracy"])
        if checkpoints is not None:
            checkpoints.write(session, progress)


def learning_rate(training: Training, epoch: int) -> float:
    """Learning rate of an epoch: a cosine over all of them; the published code keeps its own.

    It depends on nothing but the epoch, so a training that goes on in the middle has it too.
    """
    if training.loss == "published-code":
        return training.learning_rate
    return training.learning_rate * (1 + math.cos(math.pi * epoch / training.epochs)) / 2


def _train_epoch(
    session: Session, events: Events, progress: Progress, checkpoints: Checkpoints | None
) -> None:
    """Train what is left of an epoch, with a checkpoint whenever one is due.

    A checkpoint parts the epoch's phase in two: neither has its time or memory in it, and each
    phase that a checkpoint keeps is whole.
    """
    draws = itertools.islice(session.draws(progress.epoch), len(progress.losses), None)
    while _train_steps(session, events, progress, draws, checkpoints):
        if checkpoints is not None:
            checkpoints.write(session, progress)


def _train_steps(
    session: Session,
    events: Events,
    progress: Progress,
    draws: Iterator[Draw],
    checkpoints: Checkpoints | None,
) -> bool:
    """Train until the epoch ends or a checkpoint is due; whether it is the latter."""
    before, whole = len(progress.losses), session.cell.steps_per_epoch
    with events.phase("train", session.probes) as phase:
        for draw in draws:
            row, result, batch = session.timed_step(draw)
            step, epoch = len(progress.losses), progress.epoch
            events.emit("step", phase="train", step=step, epoch=epoch, **row)
            progress.losses.append(row["loss"])
            progress.seconds += row["seconds"]
            progress.right += int((result.logits.argmax(dim=-1) == batch.labels).sum())
            progress.seen += len(batch.labels)
            phase["units"] = len(progress.losses) - before
            # not after the epoch's last step: its own checkpoint follows the evaluation
            if checkpoints is not None and len(progress.losses) < whole and checkpoints.due():
                return True
    return False


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
