"""What the models see of the images: drawn, mirrored, cropped, resized and normalised in batches.

Everything that is random is drawn here, for a whole epoch at once, by one generator on the host;
so it depends on seed and epoch alone, wherever the images are kept and whatever computes on them.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.spec.preprocessing import CLIP, Preprocessing
from kdbench.spec.settings import Resampling
from kdbench.worker.data.dataset import DataSet
from kdbench.worker.data.images import Images, Pass, Streamed
from kdbench.worker.training.methods import Batch

# Widest and tallest crop, width by height (Szegedy et al. 2015, "Going deeper with convolutions").
_MOST_STRETCHED = 4 / 3


def wanted_by(teacher: nn.Module) -> Preprocessing:
    """Return what a teacher's pixels go through: it may say so itself."""
    how: Preprocessing = getattr(teacher, "preprocessing", CLIP)
    return how


class Draw(NamedTuple):
    """The images of one step: which, and what is done to each."""

    #: int64, [batch]
    indices: Tensor
    #: bool, [batch]: which are mirrored; None: no flipping
    flips: Tensor | None
    #: float32, [batch, 4]: top, left, height and width of the part that is kept, as shares of the
    #: (mirrored) image's side; None: no cropping
    boxes: Tensor | None = None
    #: waits for the images where they are streamed; None: they are on the device
    fetch: Callable[[], Images] | None = None

    def tensors(self) -> list[Tensor]:
        """Everything that the draw holds on the device."""
        return [part for part in (self.indices, self.flips, self.boxes) if part is not None]


def epoch_draws(
    data: DataSet,
    *,
    batch_size: int,
    flip: bool,
    crop: tuple[float, float] | None = None,
    seed: int,
    epoch: int,
    device: torch.device,
) -> Iterator[Draw]:
    """Draw an epoch's batches: every image at most once, the last incomplete batch dropped.

    Order, flips and crops depend on seed and epoch alone, so an epoch can be drawn again; neither
    flipping nor cropping changes the order, nor cropping the flips. Streamed images are read when
    a step asks for them: draws may be skipped, but not used twice or in another order. `crop` is
    the smallest and largest share of an image's area that is kept.
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    count = data.train_count
    order = torch.randperm(count, generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    boxes = None if crop is None else draw_boxes(count, crop, generator).to(device)
    starts = range(0, count - batch_size + 1, batch_size)
    reading = None
    if isinstance(data.train, Streamed):
        reading = Pass(data.train, [order[start : start + batch_size].tolist() for start in starts])
    order, mirrored = order.to(device), mirrored.to(device)
    for number, start in enumerate(starts):
        chosen = slice(start, start + batch_size)
        yield Draw(
            order[chosen],
            mirrored[chosen] if flip else None,
            None if boxes is None else boxes[chosen],
            None if reading is None else partial(reading.fetch, number),
        )


def draw_boxes(count: int, crop: tuple[float, float], generator: torch.Generator) -> Tensor:
    """Draw crops: float32, [count, 4], each top, left, height and width in shares of the side.

    The area is uniform within `crop`, and the logarithm of width by height is uniform within
    3/4..4/3 as far as such a box fits into the image: no draw is rejected, so each image takes the
    same numbers from the generator.
    """
    area, stretch, down, along = torch.rand(4, count, generator=generator, dtype=torch.float64)
    area = crop[0] + (crop[1] - crop[0]) * area
    # width = sqrt(area * ratio) and height = sqrt(area / ratio) are at most 1
    widest = torch.minimum(-area.log(), torch.full_like(area, math.log(_MOST_STRETCHED)))
    root = ((2 * stretch - 1) * widest / 2).exp()
    height, width = (area.sqrt() / root).clamp(max=1), (area.sqrt() * root).clamp(max=1)
    return torch.stack([down * (1 - height), along * (1 - width), height, width], dim=1).float()


def make_batch(
    images: Images | Streamed,
    draw: Draw,
    *,
    image_size: int,
    teacher_size: int | None,
    how: Preprocessing = CLIP,
    teacher_how: Preprocessing = CLIP,
) -> Batch:
    """Gather, mirror, crop, resize and normalise a batch on its device.

    Student and teacher see the same part of the same mirrored image, each in its own way; without
    a `teacher_size` there is no copy for the teacher.
    """
    if draw.fetch is not None:
        pixels, labels = draw.fetch()
    elif isinstance(images, Streamed):
        raise RuntimeError("a draw of streamed images must come from epoch_draws")
    else:
        rows = draw.indices % len(images.labels)  # a synthetic set repeats what it holds
        pixels, labels = images.pixels[rows], images.labels[rows]
    pixels = pixels.float()  # once, for student and teacher
    if draw.flips is not None:
        pixels = torch.where(draw.flips[:, None, None, None], pixels.flip(-1), pixels)
    seen, copy = prepare(pixels, image_size, draw.boxes, how=how), None
    if teacher_size is not None:
        copy = prepare(pixels, teacher_size, draw.boxes, how=teacher_how)
    return Batch(seen, labels, copy)


def prepare(
    pixels: Tensor, size: int, boxes: Tensor | None = None, *, how: Preprocessing = CLIP
) -> Tensor:
    """Crop, resize and normalise pixels in 0..255: float32, [batch, 3, size, size]."""
    resized = how.resize or size
    images = _resized(pixels.float(), resized, boxes, how.resampling)
    if resized != size:
        first = (resized - size) // 2
        images = images[..., first : first + size, first : first + size]
    mean = images.new_tensor(how.mean).view(3, 1, 1) * 255
    deviation = images.new_tensor(how.std).view(3, 1, 1) * 255
    return (images - mean) / deviation


def _resized(images: Tensor, size: int, boxes: Tensor | None, resampling: Resampling) -> Tensor:
    """Resize images in 0..255, or a box of each, to [batch, 3, size, size]."""
    if boxes is None and images.shape[-1] == size:
        return images
    if boxes is None and resampling in ("bilinear", "bicubic"):  # torch's own are as Pillow's
        images = F.interpolate(images, (size, size), mode=resampling, antialias=True)
    else:
        if boxes is None:
            boxes = images.new_tensor([[0.0, 0.0, 1.0, 1.0]])
        images = _cropped(images, size, boxes, resampling)
    # These filters reach below 0 and above 255, where pictures end.
    return images.clamp(0, 255) if resampling in ("bicubic", "lanczos") else images


def _cropped(images: Tensor, size: int, boxes: Tensor, resampling: Resampling) -> Tensor:
    """Resize a box of each image to [batch, 3, size, size]; one box may stand for all.

    Resizing is linear and separable: a matrix per image for the rows, and one for the columns. Two
    batched products do a whole batch, antialiased, as `grid_sample` cannot.
    """
    side = images.shape[-1]
    rows = _weights(boxes[:, 0], boxes[:, 2], side, size, resampling)
    columns = _weights(boxes[:, 1], boxes[:, 3], side, size, resampling)
    return rows[:, None] @ images @ columns[:, None].transpose(-1, -2)


def _weights(start: Tensor, extent: Tensor, side: int, size: int, resampling: Resampling) -> Tensor:
    """Weights [batch, size, side] that resize a stretch of `side` pixels to `size`.

    The filter is as wide as an output pixel where the stretch shrinks and as an input pixel where
    it grows; what it reaches beyond the image does not count. `Image.resize(box=...)` of Pillow
    does the same. The nearest pixel is the one that an output pixel's centre lies in.
    """
    scale = (extent * side / size)[:, None, None]
    first = (start * side)[:, None, None]
    places = torch.arange(size, device=start.device)[None, :, None] + 0.5
    pixels = torch.arange(side, device=start.device)[None, None, :] + 0.5
    if resampling == "nearest":
        found = (first + places * scale).floor().clamp(0, side - 1)
        return (pixels - 0.5 == found).float()
    distance = (pixels - (first + places * scale)) / scale.clamp(min=1)
    weights = _FILTERS[resampling](distance)
    return weights / weights.sum(dim=-1, keepdim=True)


def _cubic(distance: Tensor) -> Tensor:
    """Keys' cubic convolution (1981) with a = -1/2."""
    x = distance.abs()
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _sinc(distance: Tensor, reach: int) -> Tensor:
    return torch.where(distance.abs() < reach, torch.sinc(distance), torch.zeros_like(distance))


# weights at a distance of x pixels
_FILTERS: Mapping[Resampling, Callable[[Tensor], Tensor]] = {
    "box": lambda x: ((x > -0.5) & (x <= 0.5)).float(),
    "bilinear": lambda x: (1 - x.abs()).clamp(min=0),
    "hamming": lambda x: _sinc(x, 1) * (0.54 + 0.46 * (math.pi * x).cos()),
    "bicubic": _cubic,
    "lanczos": lambda x: _sinc(x, 3) * torch.sinc(x / 3),
}
