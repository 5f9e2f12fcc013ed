"""Files that are there as a whole or not at all, whenever the process or the power goes."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def durably(path: Path, write: Callable[[Path], Any]) -> None:
    """Have a file written under another name, and put in place when it is on the disk."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.unlink(missing_ok=True)  # a link that lay there would be written through
    try:
        write(unfinished)
        _sync(unfinished)
        unfinished.replace(path)
    finally:  # still there only where it could not be finished
        unfinished.unlink(missing_ok=True)
    _sync(path.parent)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, so that they are still there after a power cut."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        _sync(path.parent)


def _sync(path: Path) -> None:
    with opened(path) as descriptor:
        os.fsync(descriptor)


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Open a file or folder as a descriptor."""
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
