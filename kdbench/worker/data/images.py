"""Labelled images: kept on the training device, or decoded by other processes while it computes."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from kdbench.common.errors import InputError
from kdbench.worker.data.decode import decode
from kdbench.worker.data.decoder_processes import decode_ahead
from kdbench.worker.data.sources import Source

# Fewer pictures than this are decoded in the process itself: starting others would take longer.
_FEW = 256
# How many damaged pictures an error names: of more in one line nobody reads any.
_MOST_NAMED = 10
_REMEDY = "replace them or take them out of the data set"

#: A picture that cannot be used: where it is, the key that names it, the problem, and the remedy.
Problem = Sequence[str | None]


class Images(NamedTuple):
    """Labelled images on the training device."""

    #: uint8, [n, 3, side, side]
    pixels: Tensor
    #: int64, [n]
    labels: Tensor

    def batches(self, size: int, rows: Tensor | None = None) -> Iterator[Images]:
        """Yield the images, or those of rows [m], in order; the last batch may be smaller."""
        if rows is None:
            for start in range(0, len(self.labels), size):
                part = slice(start, start + size)
                yield Images(self.pixels[part], self.labels[part])
            return
        for chosen in rows.to(self.labels.device).split(size):
            yield Images(self.pixels[chosen], self.labels[chosen])


class Streamed:
    """Labelled images of which only the labels are kept.

    What is read depends on neither the number of workers nor their speed, and uses up none of the
    training's random numbers.
    """

    def __init__(self, source: Source, *, side: int, workers: int, device: torch.device) -> None:
        self._source, self._side, self._workers, self._device = source, side, workers, device
        #: int64, [n], on the device
        self.labels = source.labels.to(device)

    def batches(self, size: int, rows: Tensor | None = None) -> Iterator[Images]:
        """Yield the images in order, as `Images.batches` does."""
        chosen = list(range(len(self.labels))) if rows is None else rows.tolist()
        batches = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        for numbers, pixels in zip(batches, self.read(batches), strict=True):
            yield self.on_device(pixels, numbers)

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Decode batches on the host: uint8, [batch, 3, side, side] each."""
        pin = self._device.type == "cuda"
        # Closed here, whoever still holds an error and this frame: its processes end with it.
        with closing(_decoded(self._source, batches, self._side, self._workers, pin)) as decoded:
            yield from map(_checked, decoded)

    def on_device(self, pixels: Tensor, rows: Sequence[int]) -> Images:
        """Copy a batch's pixels to the device, and add its labels."""
        labels = self._source.labels[torch.as_tensor(rows)].to(self._device)
        return Images(pixels.to(self._device, non_blocking=True), labels)


class Pass:
    """One pass over chosen batches: each is fetched once, in order; some may be skipped.

    The processes start with the first fetch, at the batch that it asks for, so that a training
    which resumes in the middle of an epoch decodes nothing of what it has behind it.
    """

    def __init__(self, images: Streamed, batches: Sequence[Sequence[int]]) -> None:
        self._images, self._batches = images, batches
        self._next = 0
        self._reading: Iterator[Tensor] | None = None

    def fetch(self, number: int) -> Images:
        """Wait for a batch and copy it to the device."""
        if number < self._next:
            raise RuntimeError(f"batch {number} of a pass was fetched already")
        if self._reading is None:
            self._reading = self._images.read(self._batches[number:])
            self._next = number
        while True:
            pixels = next(self._reading)
            self._next += 1
            if self._next > number:
                break
        if self._next == len(self._batches):
            self._reading = None  # the processes end here, not at some later collection
        return self._images.on_device(pixels, self._batches[number])


def load_images(sources: Sequence[Source], *, side: int, workers: int) -> list[Images]:
    """Decode all pictures of each source, on the host; one error names all damaged ones."""
    found: list[Problem] = []
    loaded = []
    for source in sources:
        pixels = torch.empty((len(source.labels), 3, side, side), dtype=torch.uint8)
        done = 0
        for batch in _all(source, found, side, workers):
            pixels[done : done + len(batch)] = batch
            done += len(batch)
        loaded.append(Images(pixels, source.labels))
    _refuse_damaged(found)
    return loaded


def check_images(sources: Sequence[Source], *, side: int, workers: int) -> None:
    """Decode all pictures once and keep none, so that damage shows before the training starts."""
    found: list[Problem] = []
    for source in sources:
        for _ in _all(source, found, side, workers):
            pass
    _refuse_damaged(found)


def _all(source: Source, found: list[Problem], side: int, workers: int) -> Iterator[Tensor]:
    """Yield all pixels in batches, and collect problems until there are enough of them."""
    rows = range(len(source.labels))
    size = max(1, min(64, 2**24 // (3 * side * side)))  # some 16 MB of pixels in a batch at most
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    with closing(
        _decoded(source, batches, side, workers if len(rows) > _FEW else 0, pin=False)
    ) as decoded:
        for pixels, problems in decoded:
            found += problems
            if len(found) >= _MOST_NAMED:
                break
            yield pixels


# What waits at a `yield` holds no batch: a step would find the last one's with its own.
def _checked(batch: tuple[Tensor, list[Problem]]) -> Tensor:
    pixels, problems = batch
    _refuse_damaged(problems)
    return pixels


def _decoded(
    source: Source, batches: Sequence[Sequence[int]], side: int, workers: int, pin: bool
) -> Generator[tuple[Tensor, list[Problem]], None, None]:
    """Decode batches, each with what is wrong with its pictures; without workers, do it here."""
    fill = partial(_fill, source)
    if workers and batches:
        workers = min(workers, len(batches))
        yield from decode_ahead(fill, batches, side=side, workers=workers, pin=pin)
        return
    for rows in batches:
        taken = [torch.empty((len(rows), 3, side, side), dtype=torch.uint8, pin_memory=pin)]
        problems = fill(rows, taken[0])
        yield taken.pop(), problems


def _fill(source: Source, rows: Sequence[int], pixels: Tensor) -> list[Problem]:
    """Decode pictures into their places, and return what is wrong with those that cannot be."""
    problems: list[Problem] = []
    for place, row in enumerate(rows):
        where, key = source.where(row), source.picture_key
        try:
            pixels[place] = decode(source.encoded(row), pixels.shape[-1], where=where, key=key)
        except InputError as error:
            problems.append((where, key, error.problem, error.hint))
    return problems


def _refuse_damaged(found: Sequence[Problem]) -> None:
    """Raise one error for all pictures that cannot be used: a data set is mended in one go."""
    if not found:
        return
    where, key, problem, hint = found[0]
    if len(found) == 1:
        raise InputError(str(problem), where=where, key=key, hint=hint)
    named = "; ".join(f"{where}: {problem}" for where, _, problem, _ in found[:_MOST_NAMED])
    count = f"at least {_MOST_NAMED}" if len(found) >= _MOST_NAMED else str(len(found))
    raise InputError(
        f"expected whole pictures, found {count} that are not: {named}",
        key=key,
        hint=hint if hint and {hint} == {each[3] for each in found} else _REMEDY,
    )
