"""Images that are decoded while they are used, by processes beside the training."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdbench.errors import InputError, WorkerError
from kdbench.lifetime import die_with_parent
from kdbench.worker.images import Images
from kdbench.worker.pictures import decode
from kdbench.worker.sources import Source

# Batches that each worker process keeps ready.
_AHEAD = 2
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
        WorkerError: a worker process died.
    """
    with warnings.catch_warnings():
        # torch warns of more processes than cores; their number is a setting of the matrix file
        warnings.filterwarnings("ignore", message="This DataLoader will create")
        loader = _loader(source, batches, side, min(workers, len(batches)), pin)
        reading = iter(loader)
    try:
        for pixels, problem in reading:
            if problem is not None:
                raise InputError(problem)
            yield pixels
    except RuntimeError as error:
        if "DataLoader worker (pid" not in str(error):
            raise
        raise WorkerError(
            f"a process that decodes images died: {str(error).splitlines()[0]}; "
            "fewer of them need less shared memory (data.workers)"
        ) from error
    finally:
        del reading  # its processes end here, whoever still holds the error and this frame


def _loader(
    source: Source, batches: Sequence[Sequence[int]], side: int, workers: int, pin: bool
) -> DataLoader[Any]:
    # fork shares the list of pictures and the imported libraries with the workers; macOS's system
    # libraries do not survive it.
    start = "spawn" if platform.system() == "Darwin" else "fork"
    return DataLoader(
        _Decoder(source, side),
        sampler=batches,  # what torch takes for one row is a whole batch of ours
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin,
        prefetch_factor=_AHEAD if workers else None,
        multiprocessing_context=multiprocessing.get_context(start) if workers else None,
        worker_init_fn=partial(_start_worker, os.getpid()) if workers else None,
        # its own: torch's would be advanced, and a streamed training drop out other units
        generator=torch.Generator(),
    )


def _as_it_is(value: object) -> object:
    return value


def _start_worker(parent: int, _number: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training's to answer
    die_with_parent(parent)


class _Decoder(Dataset[Any]):
    """A batch of pictures for a list of rows, or what is wrong with one of them.

    The problem comes back as a value: torch would bury an exception in a traceback of its own.
    """

    def __init__(self, source: Source, side: int) -> None:
        self._source, self._side = source, side

    def __getitem__(self, rows: Sequence[int]) -> tuple[Tensor, str | None]:
        pixels = torch.empty((len(rows), 3, self._side, self._side), dtype=torch.uint8)
        try:
            for place, row in enumerate(rows):
                pixels[place] = decode(
                    self._source.encoded(row),
                    self._side,
                    where=self._source.where(row),
                    key=self._source.picture_key,
                )
        except InputError as error:
            return pixels, str(error)
        return pixels, None


def load_images(source: Source, *, side: int, workers: int) -> Images:
    """Decode all pictures of a source, on the host.

    Raises:
        InputError: a picture cannot be read.
    """
    pixels = torch.empty((len(source.labels), 3, side, side), dtype=torch.uint8)
    done = 0
    for batch in _all(source, side=side, workers=workers):
        pixels[done : done + len(batch)] = batch
        done += len(batch)
    return Images(pixels, source.labels)


def check_images(source: Source, *, side: int, workers: int) -> None:
    """Decode all pictures of a source once, and keep none: damage is told before the training.

    Raises:
        InputError: a picture cannot be read.
    """
    for _ in _all(source, side=side, workers=workers):
        pass


def _all(source: Source, *, side: int, workers: int) -> Iterator[Tensor]:
    rows = range(len(source.labels))
    size = max(1, min(64, 2**24 // (3 * side * side)))  # some 16 MB of pixels in a batch at most
    batches = [rows[start : start + size] for start in range(0, len(rows), size)]
    return read_batches(source, batches, side=side, workers=workers if len(rows) > _FEW else 0)


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
