"""The teacher: a Hugging Face ViT, which embeds images or scores the data set's classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from kdbench.common.errors import InputError
from kdbench.spec.cell import Cell, digest
from kdbench.spec.preprocessing import Preprocessing, resolve_preprocessing
from kdbench.spec.pretrained.local import LocalTeacher, read_local_teacher
from kdbench.spec.settings import Teacher as Shape
from kdbench.worker.models.pretrained import read_pretrained
from kdbench.worker.out_of_memory import is_shortage

# What a fitted teacher's file holds; another number, and older files are not taken for it.
# 2: a ViT with its head and without a pooler. 1: the other way round.
_LAYOUT = 2


class Teacher(nn.Module):
    """Embeds images, or scores their classes; frozen, in evaluation mode."""

    def __init__(
        self,
        vit: nn.Module,
        head: nn.Module | None = None,
        *,
        revision: str | None = None,
        preprocessing: Preprocessing,
    ) -> None:
        super().__init__()
        self.vit, self.head = vit, head
        self.preprocessing = preprocessing
        #: commit of the hub's repository that the weights came from; None: from no repository
        self.revision = revision
        self.eval().requires_grad_(requires_grad=False)

    @classmethod
    def of(
        cls,
        model: Any,  # transformers has no type stubs
        cell: Cell,
        preprocessing: Preprocessing,
        revision: str | None = None,
    ) -> Teacher:
        """Take what the cell's method needs of a model: all of it, or a classifier's two parts."""
        parts = (model.vit, model.classifier) if cell.method_spec.classifier else (model,)
        return cls(*parts, revision=revision, preprocessing=preprocessing)

    def forward(self, images: Tensor) -> Tensor:
        """Map normalised images [n, 3, side, side] to embeddings, or to class scores with a head.

        Embeddings are class tokens [n, width]; scores are raw, [n, classes].
        """
        token: Tensor = self.vit(pixel_values=images).last_hidden_state[:, 0]
        return token if self.head is None else self.head(token)


def vit_config(shape: Shape, classes: int | None = None) -> ViTConfig:
    """Write a teacher's shape as transformers' configuration; `classes` are a classifier's."""
    return ViTConfig(
        hidden_size=shape.width,
        num_hidden_layers=shape.depth,
        num_attention_heads=shape.heads,
        intermediate_size=4 * shape.width,
        patch_size=shape.patch_size,
        image_size=shape.image_size,
        **({} if classes is None else {"num_labels": classes}),
    )


def load_teacher(
    cell: Cell, *, device: torch.device, cache: Path, class_names: Sequence[str] | None = None
) -> Teacher:
    """Build the cell's teacher with its weights, on the device.

    It scores the data set's classes where the method declares so, and embeds images otherwise. A
    pretrained classifier's classes must be `class_names`, where these are known.
    """
    shape, revision = cell.required_teacher, None
    preprocessing = resolve_preprocessing(shape, None)
    classes = cell.data.classes if cell.method_spec.classifier else None
    if shape.weights == "random":
        model = random_vit(shape, device, classes=classes)
    elif shape.weights == "pretrained":
        model, revision, preprocessing = read_pretrained(cell, class_names=class_names)
    else:
        fitted = read_fitted(cell, cache)
        if fitted is None:
            raise InputError("no fitted teacher in the cache", where=fitted_path(cell, cache))
        model = fitted if classes is not None else fitted.vit
    return Teacher.of(model, cell, preprocessing, revision).to(device)


def teacher_shape(cell: Cell) -> Teacher:
    """Build the cell's teacher without storage, as its local checkpoint has it.

    Of one on the hub nothing is known: it is taken to be as the matrix file says, with a pooler.
    """
    shape = cell.required_teacher
    unknown = LocalTeacher(preprocessing=resolve_preprocessing(shape, None))
    local = read_local_teacher(cell) or unknown
    classes = cell.data.classes if cell.method_spec.classifier else None
    if shape.weights == "fitted" and classes is None:
        model = _without_storage(shape, cell.data.classes).vit
    elif local.config is None:
        model = _without_storage(shape, classes)
    else:
        kind = ViTModel if classes is None else ViTForImageClassification
        with torch.device("meta"):
            model = kind(ViTConfig(**local.config.for_transformers()))
        if classes is None and local.has_pooler is False:
            model.pooler = None  # as in a measured run
    return Teacher.of(model, cell, local.preprocessing)


def random_vit(
    shape: Shape, device: torch.device, *, seed: int = 0, classes: int | None = None
) -> Any:  # transformers has no type stubs
    """Build a `ViTModel`, or with classes a `ViTForImageClassification`, with random weights.

    It is built without storage first: transformers' own initialisation would cost seconds and is
    of no use to a model that is not trained.
    """
    vit = _without_storage(shape, classes).to_empty(device=device)
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


def _without_storage(shape: Shape, classes: int | None) -> Any:
    kind = ViTModel if classes is None else ViTForImageClassification
    with torch.device("meta"):
        return kind(vit_config(shape, classes))


def fitted_path(cell: Cell, cache: Path) -> Path:
    """Where a fitted teacher is cached: its name is a digest of all that it was fitted from."""
    made_from = {
        "layout": _LAYOUT,
        "teacher": cell.required_teacher.identity(without={"checkpoint", "revision"}),
        "data": cell.data.model_dump(exclude={"name", "storage", "workers"}),
        "content": [list(pair) for pair in cell.content_digests if pair[0] == "data"],
    }
    return cache / "teachers" / f"{digest(made_from)}.safetensors"


def read_fitted(cell: Cell, cache: Path) -> Any:
    """Read the cell's fitted `ViTForImageClassification`; None where there is none to be read.

    Versions of transformers name the weights differently: a file of another one is none either.
    """
    path = fitted_path(cell, cache)
    if not path.is_file():
        return None
    model = _without_storage(cell.required_teacher, cell.data.classes)
    try:
        weights = load_file(path)
        if any(tensor.dtype != torch.float32 for tensor in weights.values()):
            return None
        model.load_state_dict(weights, assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        if is_shortage(error):
            raise
        return None
    return model
