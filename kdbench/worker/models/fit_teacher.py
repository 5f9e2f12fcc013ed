"""Fit a small teacher on the data set's training images, and keep it."""

from pathlib import Path
from time import monotonic
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import ViTForImageClassification

from kdbench.spec.cell import Cell
from kdbench.spec.preprocessing import Preprocessing, resolve_preprocessing
from kdbench.worker.checkpoints.durable import durably, make_folder
from kdbench.worker.data.augment import epoch_draws, make_batch, prepare
from kdbench.worker.data.dataset import DataSet, load_data
from kdbench.worker.data.images import Images, Streamed
from kdbench.worker.events import Events
from kdbench.worker.models.teacher import fitted_path, read_fitted, vit_config
from kdbench.worker.training.precision import set_precision

_EVALUATION_BATCH = 256


def ensure_fitted(cell: Cell, *, device: torch.device, cache: Path, events: Events) -> None:
    """Fit the cell's teacher unless the cache has it; damaged weights are fitted anew."""
    path = fitted_path(cell, cache)
    if read_fitted(cell, cache) is not None:
        events.emit("teacher", path=str(path), cached=True)
        return
    started = monotonic()
    set_precision("fp32", device)
    data = load_data(cell, device=device)
    model = _fit(cell, data, device, events)
    teacher = cell.required_teacher
    how = resolve_preprocessing(teacher, None)
    accuracy = _accuracy(model, data.test, teacher.image_size, how)
    _save(model, path)
    events.emit(
        "teacher", path=str(path), cached=False, accuracy=accuracy, seconds=monotonic() - started
    )


def _fit(
    cell: Cell, data: DataSet, device: torch.device, events: Events
) -> Any:  # transformers has no type stubs
    teacher = cell.required_teacher
    fit, how = teacher.fit, resolve_preprocessing(teacher, None)  # fitted on what it will see
    torch.manual_seed(fit.seed)
    model = ViTForImageClassification(vit_config(teacher, cell.data.classes)).to(device)
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
            batch = make_batch(
                data.train, draw, image_size=teacher.image_size, teacher_size=None, how=how
            )
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(pixel_values=batch.images).logits, batch.labels)
            loss.backward()
            optimizer.step()
            schedule.step()
        events.emit("progress", done=epoch + 1, total=fit.epochs, loss=float(loss.detach()))
    return model


@torch.no_grad()
def _accuracy(model: Any, images: Images | Streamed, size: int, how: Preprocessing) -> float:
    model.eval()
    right = 0
    for pixels, labels in images.batches(_EVALUATION_BATCH):
        scores = model(pixel_values=prepare(pixels, size, how=how)).logits
        right += int((scores.argmax(dim=-1) == labels).sum())
    return right / len(images.labels)


def _save(model: torch.nn.Module, path: Path) -> None:
    """Write by rename: two runs that fit the same teacher at once both end with a whole file."""
    make_folder(path.parent)
    state = model.state_dict()
    weights = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    durably(path, lambda unfinished: save_file(weights, unfinished))
