"""Images as uint8 on the training device, augmented there in batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench.cell import Cell, Data
from kdbench.errors import InputError, did_you_mean, quoted
from kdbench.worker.methods import Batch

# CLIP's channel means and deviations, for images in 0..1 (Radford et al. 2021, the published
# preprocessing of the models).
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_DEVIATION = (0.26862954, 0.26130258, 0.27577711)

# A synthetic data set holds this many batches and repeats them: steps cost the same whatever the
# pixels are, and a whole data set's bytes are not a step's.
_SYNTHETIC_BATCHES = 4


class Images(NamedTuple):
    """Some labelled images on the training device."""

    #: uint8, [n, 3, side, side]
    pixels: Tensor
    #: int64, [n]
    labels: Tensor


@dataclass(frozen=True)
class DataSet:
    """Training and test images."""

    train: Images
    test: Images
    #: images that an index may name: a synthetic set pretends to have more than it holds
    train_count: int

    def tensors(self) -> list[Tensor]:
        """Everything the data set holds on the device."""
        return [*self.train, *self.test]


class Draw(NamedTuple):
    """The images of one step: which, and which of them are mirrored."""

    #: int64, [batch]
    indices: Tensor
    #: bool, [batch]; None: no flipping
    flips: Tensor | None


def load_data(cell: Cell, *, device: torch.device) -> DataSet:
    """Load the cell's data set onto the device.

    Raises:
        InputError: the images are not what the matrix file says.
    """
    data = cell.data
    if data.source == "synthetic":
        held = min(data.train_images, _SYNTHETIC_BATCHES * cell.training.batch_size)
        made = _synthetic(data, held)
        return DataSet(*(_on(device, made), _on(device, made)), train_count=data.train_images)
    train, test = _digits(data) if data.source == "digits" else _datasets(data)
    return DataSet(_on(device, train), _on(device, test), train_count=len(train.labels))


def epoch_draws(
    data: DataSet, *, batch_size: int, flip: bool, seed: int, epoch: int, device: torch.device
) -> Iterator[Draw]:
    """Draw an epoch's batches: every image at most once, the last incomplete batch dropped.

    Order and flips depend on seed and epoch alone, so an epoch can be drawn again.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    order = torch.randperm(data.train_count, generator=generator)
    mirrored = torch.rand(data.train_count, generator=generator) < 0.5
    order, mirrored = order.to(device), mirrored.to(device)
    for start in range(0, data.train_count - batch_size + 1, batch_size):
        chosen = slice(start, start + batch_size)
        yield Draw(order[chosen], mirrored[chosen] if flip else None)


def make_batch(images: Images, draw: Draw, *, image_size: int, teacher_size: int | None) -> Batch:
    """Gather, mirror, resize and normalise the images of a draw.

    Student and teacher see the same images; the teacher's are resized from the stored ones.
    """
    rows = draw.indices % len(images.labels)
    pixels = images.pixels[rows].float()
    if draw.flips is not None:
        pixels = torch.where(draw.flips[:, None, None, None], pixels.flip(-1), pixels)
    return Batch(
        images=prepare(pixels, image_size),
        labels=images.labels[rows],
        teacher_images=prepare(pixels, teacher_size) if teacher_size else None,
    )


def prepare(pixels: Tensor, size: int) -> Tensor:
    """Resize [n, 3, side, side] in 0..255 to `size` (bilinear, antialiased) and normalise."""
    pixels = pixels.float()
    if pixels.shape[-1] != size:
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True)
    mean = pixels.new_tensor(_MEAN).view(3, 1, 1) * 255
    deviation = pixels.new_tensor(_DEVIATION).view(3, 1, 1) * 255
    return (pixels - mean) / deviation


def _on(device: torch.device, images: Images) -> Images:
    return Images(images.pixels.to(device), images.labels.to(device))


def _synthetic(data: Data, count: int) -> Images:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, data.image_size, data.image_size)
    return Images(
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        torch.randint(0, data.classes, (count,), generator=generator),
    )


def _digits(data: Data) -> tuple[Images, Images]:
    from sklearn.datasets import load_digits  # noqa: PLC0415 - slow to import, and rarely needed

    bundled = load_digits()
    if (data.classes, data.image_size) != (10, 8):
        raise InputError(
            f"the digits have 10 classes of 8 x 8 pixels, found {data.classes} of "
            f"{data.image_size} x {data.image_size}",
            where=data.name,
            key="data",
        )
    grey = torch.from_numpy(np.round(bundled.images * (255 / 16)).astype(np.uint8))
    whole = Images(
        grey[:, None].expand(-1, 3, -1, -1).contiguous(),
        torch.from_numpy(bundled.target.astype(np.int64)),
    )
    # The set is in order of its writers; a fixed shuffle makes the splits alike, and no seed of a
    # training moves an image from one to the other.
    order = torch.randperm(len(whole.labels), generator=torch.Generator().manual_seed(0))
    wanted = data.train_images + data.test_images
    if wanted > len(order):
        raise InputError(
            f"expected at most {len(order)} images in both splits, found {wanted}",
            where=data.name,
            key="data.train_images",
        )
    return (
        _rows(whole, order[: data.train_images]),
        _rows(whole, order[data.train_images : wanted]),
    )


def _rows(images: Images, rows: Tensor) -> Images:
    return Images(images.pixels[rows].contiguous(), images.labels[rows].contiguous())


def _datasets(data: Data) -> tuple[Images, Images]:
    return (
        _split(data, data.train_split, data.train_images),
        _split(data, data.test_split, data.test_images),
    )


def _split(data: Data, split: str, expected: int) -> Images:
    found = _open_split(data, split)
    where = f"{data.path} ({split})"
    for key, column in (("image_column", data.image_column), ("label_column", data.label_column)):
        if column not in found.column_names:
            raise InputError(
                f"no column {column!r}",
                where=where,
                key=f"data.{key}",
                hint=did_you_mean(column, found.column_names)
                or f"the columns are {quoted(found.column_names)}",
            )
    if len(found) != expected:
        raise InputError(
            f"expected {expected} images, found {len(found)}",
            where=where,
            key="data.train_images / data.test_images",
        )
    pixels = torch.empty((len(found), 3, data.image_size, data.image_size), dtype=torch.uint8)
    for row, picture in enumerate(found[data.image_column]):
        pixels[row] = _pixels(picture, data.image_size, f"{where}, row {row}")
    labels = torch.as_tensor(list(found[data.label_column]), dtype=torch.int64)
    wrong = ((labels < 0) | (labels >= data.classes)).nonzero()
    if len(wrong):
        raise InputError(
            f"expected labels from 0 to {data.classes - 1}, found "
            f"{int(labels[wrong[0]])} in row {int(wrong[0])}",
            where=where,
            key="data.classes",
        )
    return Images(pixels, labels)


def _open_split(data: Data, split: str) -> Any:  # noqa: ANN401 - datasets has no type stubs
    import datasets  # noqa: PLC0415 - slow to import, and rarely needed

    path = str(data.path)
    try:
        if (Path(path) / "dataset_dict.json").is_file():
            return datasets.load_from_disk(path)[split]
        return datasets.load_dataset(path, split=split, revision=data.revision)
    except Exception as error:
        raise InputError(
            f"cannot load the data set: {type(error).__name__}: {_first_line(error)}",
            where=path,
            key="data.path",
            hint=f"where there is network: hf download --repo-type dataset {path}",
        ) from error


def _pixels(picture: Any, size: int, where: str) -> Tensor:  # noqa: ANN401 - a PIL image
    try:
        coloured = picture.convert("RGB")
    except (AttributeError, OSError, SyntaxError) as error:
        raise InputError(
            f"expected an image, found {type(picture).__name__}: {_first_line(error)}",
            where=where,
            key="data.image_column",
        ) from error
    if coloured.size != (size, size):
        coloured = coloured.resize((size, size), resample=2)  # bilinear
    return torch.from_numpy(np.array(coloured)).permute(2, 0, 1)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]
