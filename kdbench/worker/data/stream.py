"""Images that are decoded while they are used, by processes beside the training."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial

import torch
from torch import Tensor

from kdbench.common.errors import InputError
from kdbench.worker.data.damaged import Damaged, Problem, problem_of
from kdbench.worker.data.decode import decode
from kdbench.worker.data.decoder_processes import decode_ahead
from kdbench.worker.data.images import Images
from kdbench.worker.data.sources import Source

# Fewer pictures than this are decoded in the process itself: starting others would take longer.
_FEW = 256


def read_batches(
    source: Source, batches: Sequence[Sequence[int]], *, side: int, workers: int, pin: bool = False
) -> Iterator[Tensor]:
    """Decode batches of pictures, in order, by worker processes that read ahead.

    What is yielded depends on neither the number of workers nor their speed. No random numbers of
    the caller's are used up.

    Args:
        source: the pictures.
        batches: which of them are in each batch.
        side: pixels.
        workers: processes; 0 decodes in this one.
        pin: put the batches into page-locked memory, for fast copies to a GPU.

    Yields:
        uint8, [batch, 3, side, side], on the host.

    Raises:
        InputError: a picture cannot be read.
        DecoderDiedError: a worker process died.
    """
    damaged = Damaged()
    # Closed here, whoever still holds an error and this frame: its processes end with it.
    with closing(_decoded(source, batches, side=side, workers=workers, pin=pin)) as decoded:
        yield from map(partial(_checked, damaged), decoded)


# What waits at a `yield` holds no batch: a step would find the last one's beside its own.
def _checked(damaged: Damaged, batch: tuple[Tensor, list[Problem]]) -> Tensor:
    pixels, found = batch
    damaged.add(found)
    damaged.check()
    return pixels


def _decoded(
    source: Source,
    batches: Sequence[Sequence[int]],
    *,
    side: int,
    workers: int,
    pin: bool = False,
) -> Generator[tuple[Tensor, list[Problem]], None, None]:
    """Decode batches, each with what is wrong with its pictures."""
    fill = partial(_fill, source)
    if workers and batches:
        workers = min(workers, len(batches))
        yield from decode_ahead(fill, batches, side=side, workers=workers, pin=pin)
        return
    for rows in batches:
        taken = [torch.empty((len(rows), 3, side, side), dtype=torch.uint8, pin_memory=pin)]
        found = fill(rows, taken[0])
        yield taken.pop(), found


def _fill(source: Source, rows: Sequence[int], pixels: Tensor) -> list[Problem]:
    """Decode pictures into their places; what cannot be is left out of them, and told."""
    problems = []
    for place, row in enumerate(rows):
        where, key = source.where(row), source.picture_key
        try:
            pixels[place] = decode(source.encoded(row), pixels.shape[-1], where=where, key=key)
        except InputError as error:
            problems.append(problem_of(error, where=where, key=key))
    return problems


def load_images(
    source: Source, *, side: int, workers: int, damaged: Damaged | None = None
) -> Images:
    """Decode all pictures of a source, on the host.

    Args:
        source: the pictures.
        side: pixels.
        workers: processes that decode.
        damaged: is told of pictures that cannot be read, for others to raise; None: raised here.

    Raises:
        InputError: pictures cannot be read.
    """
    pixels = torch.empty((len(source.labels), 3, side, side), dtype=torch.uint8)
    done = 0
    for batch in _all(source, side=side, workers=workers, damaged=damaged):
        pixels[done : done + len(batch)] = batch
        done += len(batch)
    return Images(pixels, source.labels)


def check_images(
    source: Source, *, side: int, workers: int, damaged: Damaged | None = None
) -> None:
    """Decode all pictures of a source once, and keep none: damage is told before the training.

    The arguments and errors are those of `load_images`.
    """
    for _ in _all(source, side=side, workers=workers, damaged=damaged):
        pass


def _all(source: Source, *, side: int, workers: int, damaged: Damaged | None) -> Iterator[Tensor]:
    rows = range(len(source.labels))
    size = max(1, min(64, 2**24 // (3 * side * side)))  # some 16 MB of pixels in a batch at most
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    own = Damaged() if damaged is None else damaged
    with closing(
        _decoded(source, batches, side=side, workers=workers if len(rows) > _FEW else 0)
    ) as decoded:
        for pixels, found in decoded:
            own.add(found)
            if own.enough:
                break
            yield pixels
    if damaged is None:
        own.check()


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
        """Wait for a batch and copy it to the device.

        Raises:
            InputError: a picture that could be read before cannot any more.
        """
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


class Streamed:
    """Labelled images of which only the labels are kept."""

    def __init__(self, source: Source, *, side: int, workers: int, device: torch.device) -> None:
        self._source, self._side, self._workers, self._device = source, side, workers, device
        #: int64, [n], on the device
        self.labels = source.labels.to(device)

    def batches(self, size: int, rows: Tensor | None = None) -> Iterator[Images]:
        """Yield the images in order, as `Images.batches` does.

        Raises:
            InputError: a picture that could be read before cannot any more.
        """
        chosen = list(range(len(self.labels))) if rows is None else rows.tolist()
        batches = [chosen[start : start + size] for start in range(0, len(chosen), size)]
        for numbers, pixels in zip(batches, self.read(batches), strict=True):
            yield self.on_device(pixels, numbers)

    def read(self, batches: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """Decode batches on the host: uint8, [batch, 3, side, side] each."""
        return read_batches(
            self._source,
            batches,
            side=self._side,
            workers=self._workers,
            pin=self._device.type == "cuda",
        )

    def on_device(self, pixels: Tensor, rows: Sequence[int]) -> Images:
        """Copy a batch's pixels to the device, and add its labels."""
        labels = self._source.labels[torch.as_tensor(rows)].to(self._device)
        return Images(pixels.to(self._device, non_blocking=True), labels)
