"""The teacher: a Hugging Face ViT whose class token is the embedding of an image."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

from kdbench.cell import Cell, digest
from kdbench.cell import Teacher as Shape
from kdbench.errors import InputError


class Teacher(nn.Module):
    """Embeds images; frozen, in evaluation mode."""

    def __init__(self, vit: nn.Module) -> None:
        super().__init__()
        self.vit = vit
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images [n, 3, side, side] to class tokens [n, width]."""
        hidden: Tensor = self.vit(pixel_values=images).last_hidden_state
        return hidden[:, 0]


def vit_config(shape: Shape) -> ViTConfig:
    """Write a teacher's shape as transformers' configuration."""
    return ViTConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        patch_size=shape.patch_size,
        image_size=shape.image_size,
    )


def load_teacher(cell: Cell, *, device: torch.device, cache: Path) -> Teacher:
    """Build the cell's teacher with its weights, on the device.

    Raises:
        InputError: the checkpoint is absent or of another shape, or nothing fitted is cached.
    """
    shape = cell.required_teacher
    if shape.weights == "random":
        return Teacher(random_vit(shape, device))
    if shape.weights == "pretrained":
        return Teacher(_pretrained(shape, f"teachers.{cell.teacher_name}").to(device))
    return Teacher(_fitted(cell, cache).to(device))


def random_vit(shape: Shape, device: torch.device, *, seed: int = 0) -> ViTModel:
    """Build a ViT with weights drawn at random.

    It is built without storage first: transformers' own initialisation would cost seconds and is
    of no use to a model that is not trained.
    """
    with torch.device("meta"):
        vit = ViTModel(vit_config(shape))
    vit = vit.to_empty(device=device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for module in vit.modules():
            norm = isinstance(module, nn.LayerNorm)
            for name, parameter in module.named_parameters(recurse=False):
                if norm and name == "weight":
                    parameter.fill_(1.0)
                elif name == "bias":
                    parameter.zero_()
                else:
                    parameter.normal_(std=0.02, generator=generator)
    return vit


def fitted_path(cell: Cell, cache: Path) -> Path:
    """Where a fitted teacher is cached: its name is a digest of all that it was fitted from."""
    made_from = {
        "teacher": cell.required_teacher.model_dump(exclude={"checkpoint", "revision"}),
        "data": cell.data.model_dump(exclude={"name", "storage", "workers"}),
        "content": [list(pair) for pair in cell.content_digests if pair[0] == "data"],
    }
    return cache / "teachers" / f"{digest(made_from)}.safetensors"


def read_weights(path: Path) -> dict[str, Tensor] | None:
    """Read cached weights; None where there are none that can be read."""
    try:
        weights: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError):
        return None
    return weights


def _fitted(cell: Cell, cache: Path) -> ViTModel:
    path = fitted_path(cell, cache)
    weights = read_weights(path)
    if weights is None:
        raise InputError("no fitted teacher in the cache", where=path)
    vit = ViTModel(vit_config(cell.required_teacher))
    vit.load_state_dict(weights)
    return vit


def _pretrained(shape: Shape, key: str) -> Any:  # noqa: ANN401 - transformers' own type is a mixin
    name = str(shape.checkpoint)
    try:
        # Weights are read from safetensors alone: a pickle can run code.
        vit = ViTModel.from_pretrained(
            name, revision=shape.revision or "main", use_safetensors=True, trust_remote_code=False
        )
    except Exception as error:
        told = (str(error).splitlines() or [""])[0]
        fetch = "" if os.path.isdir(name) else f"hf download {name}"  # noqa: PTH112
        raise InputError(
            f"cannot load the checkpoint: {type(error).__name__}: {told}",
            where=name,
            key=f"{key}.checkpoint",
            hint=f"where there is network: {fetch}"
            if fetch
            else "expected a folder that save_pretrained wrote, with model.safetensors",
        ) from error
    wanted = vit_config(shape)
    for name_of in (
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "patch_size",
        "image_size",
    ):
        if getattr(vit.config, name_of) != getattr(wanted, name_of):
            raise InputError(
                f"the matrix file says {name_of} = {getattr(wanted, name_of)}, the checkpoint "
                f"has {getattr(vit.config, name_of)}",
                where=name,
                key=key,
            )
    return vit
