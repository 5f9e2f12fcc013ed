"""Fit a small teacher on the data set's training images, and keep it."""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import ViTModel

from kdbench.cell import Cell
from kdbench.worker.augment import epoch_draws, make_batch, prepare
from kdbench.worker.data import DataSet, load_data
from kdbench.worker.events import Events
from kdbench.worker.images import Images
from kdbench.worker.precision import set_precision
from kdbench.worker.stream import Streamed
from kdbench.worker.teacher import fitted_path, read_weights, vit_config

_EVALUATION_BATCH = 256


class _Classifier(nn.Module):
    """The teacher with a head of its own, which is dropped after fitting."""

    def __init__(self, vit: ViTModel, width: int, classes: int) -> None:
        super().__init__()
        self.vit = vit
        self.head = nn.Linear(width, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.head(self.vit(pixel_values=images).last_hidden_state[:, 0])
        return scores


def ensure_fitted(cell: Cell, *, device: torch.device, cache: Path, events: Events) -> None:
    """Fit the cell's teacher unless the cache has it; damaged weights are fitted anew."""
    path = fitted_path(cell, cache)
    if read_weights(path) is not None:
        events.emit("teacher", path=str(path), cached=True)
        return
    started = monotonic()
    set_precision("fp32", device)
    data = load_data(cell, device=device)
    model = _fit(cell, data, device, events)
    accuracy = _accuracy(model, data.test, cell.required_teacher.image_size)
    _save(model.vit, path)
    events.emit(
        "teacher", path=str(path), cached=False, accuracy=accuracy, seconds=monotonic() - started
    )


def _fit(cell: Cell, data: DataSet, device: torch.device, events: Events) -> _Classifier:
    teacher = cell.required_teacher
    fit = teacher.fit
    torch.manual_seed(fit.seed)
    model = _Classifier(
        ViTModel(vit_config(teacher), add_pooling_layer=True),
        teacher.width,
        cell.data.classes,
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), fit.learning_rate)
    steps = fit.epochs * max(1, data.train_count // fit.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, fit.learning_rate, total_steps=steps)
    model.train()
    for epoch in range(fit.epochs):
        for draw in epoch_draws(
            data,
            batch_size=fit.batch_size,
            flip=cell.data.flip,
            crop=cell.data.crop,
            seed=fit.seed,
            epoch=epoch,
            device=device,
        ):
            batch = make_batch(data.train, draw, image_size=teacher.image_size, teacher_size=None)
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(batch.images), batch.labels)
            loss.backward()
            optimizer.step()
            schedule.step()
        events.emit("progress", done=epoch + 1, total=fit.epochs, loss=float(loss.detach()))
    return model


@torch.no_grad()
def _accuracy(model: nn.Module, images: Images | Streamed, size: int) -> float:
    model.eval()
    right = 0
    for held in images.batches(_EVALUATION_BATCH):
        scores = model(prepare(held.pixels, size))
        right += int((scores.argmax(dim=-1) == held.labels).sum())
    return right / len(images.labels)


def _save(vit: nn.Module, path: Path) -> None:
    """Write by rename: two runs that fit the same teacher at once both end with a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    weights = {
        name: tensor.detach().cpu().contiguous() for name, tensor in vit.state_dict().items()
    }
    save_file(weights, unfinished)
    unfinished.replace(path)
