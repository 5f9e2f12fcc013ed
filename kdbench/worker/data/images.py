"""Labelled images on the training device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor


class Images(NamedTuple):
    """Some labelled images on the training device."""

    #: uint8, [n, 3, side, side]
    pixels: Tensor
    #: int64, [n]
    labels: Tensor

    def batches(self, size: int, rows: Tensor | None = None) -> Iterator[Images]:
        """Yield the images in order, `size` at a time; the last batch may be smaller.

        Args:
            size: images in a batch.
            rows: int64, [m]: these images only, in this order; None: all of them.
        """
        if rows is None:
            for start in range(0, len(self.labels), size):
                part = slice(start, start + size)
                yield Images(self.pixels[part], self.labels[part])
            return
        for chosen in rows.to(self.labels.device).split(size):
            yield Images(self.pixels[chosen], self.labels[chosen])
