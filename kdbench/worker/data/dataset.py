"""A cell's data set: kept on the training device where it fits, streamed where it does not."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from kdbench.common.errors import InputError
from kdbench.common.memory_limits import tightest_limit
from kdbench.spec.cell import Cell
from kdbench.spec.settings import Data
from kdbench.worker.data.images import Images, Streamed, check_images, load_images
from kdbench.worker.data.sources import open_sources

# A synthetic data set holds this many batches and repeats them: steps cost the same whatever the
# pixels are, and a whole data set's bytes are not a step's.
_SYNTHETIC_BATCHES = 4

#: storage = "auto" keeps images on the device up to this share of its free memory: the rest is for
#: the training, which has allocated nothing yet.
_KEPT_SHARE = 0.25


@dataclass(frozen=True)
class DataSet:
    """Training and test images."""

    train: Images | Streamed
    test: Images | Streamed
    #: images that an index may name: a synthetic set pretends to have more than it holds
    train_count: int
    #: in the order of their numbers; None: the data set does not name them
    class_names: tuple[str, ...] | None = None
    #: what a user may want to know of it, a line each
    notes: tuple[str, ...] = ()

    @property
    def storage(self) -> Literal["device", "stream"]:
        """Where the images are: what `storage = "auto"` has come to."""
        return "stream" if isinstance(self.train, Streamed) else "device"

    def tensors(self) -> list[Tensor]:
        """Everything the data set holds on the device; of streamed images only the labels."""
        return [
            tensor
            for images in (self.train, self.test)
            for tensor in (images if isinstance(images, Images) else [images.labels])
        ]


def load_data(cell: Cell, *, device: torch.device) -> DataSet:
    """Load the cell's data set onto the device, or check it and get ready to stream it.

    Every picture is decoded once before this returns, so that damage shows before the training
    starts.
    """
    data = cell.data
    if data.source == "synthetic":
        count = min(data.train_images, _SYNTHETIC_BATCHES * cell.training.batch_size)
        check_room(count * 3 * data.image_size**2)
        made = _on(device, _synthetic(data, count))
        return DataSet(made, made, train_count=data.train_images)
    if data.source == "digits":
        train, test = (_on(device, images) for images in _digits(data))
        return DataSet(train, test, train_count=data.train_images)
    sources = open_sources(data)
    reading = {"side": data.image_size, "workers": data.workers}
    both: list[Images] | list[Streamed]
    if is_streamed(data, free_bytes(device)):
        check_images(sources, **reading)
        both = [Streamed(source, device=device, **reading) for source in sources]
    else:
        check_room((data.train_images + data.test_images) * 3 * data.image_size**2)
        both = [_on(device, images) for images in load_images(sources, **reading)]
    notes = tuple(
        f"{data.path} ({split}): {source.passed_over}"
        for split, source in zip((data.train_split, data.test_split), sources, strict=True)
        if source.passed_over
    )
    return DataSet(both[0], both[1], len(both[0].labels), sources[0].class_names, notes)


def is_streamed(data: Data, free: float) -> bool:
    """Whether images are streamed to a device with so many free bytes."""
    size = (data.train_images + data.test_images) * 3 * data.image_size**2
    return size > _KEPT_SHARE * free if data.storage == "auto" else data.storage == "stream"


def free_bytes(device: torch.device) -> int:
    """Bytes of the device's memory that nobody uses; on the CPU, within every limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return tightest_limit().free_bytes


def check_room(needed: int) -> None:
    """Refuse images that the host's memory does not hold, before it is filled with them."""
    free = free_bytes(torch.device("cpu"))
    if needed > free:
        raise MemoryError(
            f"can't allocate memory: tried to allocate {needed} bytes for the images, found "
            f"{free} free"
        )


def _on(device: torch.device, images: Images) -> Images:
    return Images(images.pixels.to(device), images.labels.to(device))


def _synthetic(data: Data, count: int) -> Images:
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, data.image_size, data.image_size)
    return Images(
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator),
        torch.randint(0, data.classes, (count,), generator=generator),
    )


def _digits(data: Data) -> list[Images]:
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
    pixels = grey[:, None].expand(-1, 3, -1, -1).contiguous()
    labels = torch.from_numpy(bundled.target.astype(np.int64))
    # The set is in order of its writers; a fixed shuffle makes the splits alike, and no seed of a
    # training moves an image from one to the other.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    wanted = data.train_images + data.test_images
    if wanted > len(order):
        problem = f"expected at most {len(order)} images in both splits, found {wanted}"
        raise InputError(problem, where=data.name, key="data.train_images")
    splits = (order[: data.train_images], order[data.train_images : wanted])
    return [Images(pixels[rows].contiguous(), labels[rows].contiguous()) for rows in splits]
