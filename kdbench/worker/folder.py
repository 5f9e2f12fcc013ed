"""A folder of pictures in ImageNet's layout: FOLDER/SPLIT/CLASS/PICTURE."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdbench.errors import InputError, did_you_mean, quoted
from kdbench.settings import Data
from kdbench.worker.pictures import SUFFIXES


@dataclass(frozen=True)
class FolderSource:
    """The pictures of one split, class after class, each class by file name."""

    files: tuple[str, ...]
    #: int64, [n]
    labels: Tensor
    #: of the training split's folders, for both splits
    class_names: tuple[str, ...]
    picture_key: str = "data.path"

    def encoded(self, row: int) -> Path:
        """Return the file of a picture."""
        return Path(self.files[row])

    def where(self, row: int) -> str:
        """Name a picture in an error."""
        return self.files[row]


def open_folder(data: Data, root: Path) -> tuple[FolderSource, FolderSource]:
    """List the training and test pictures.

    A class's number is its place among the training split's folders, sorted by name; the test
    split may lack classes.

    Raises:
        InputError: a split is missing, or its classes are not those of the training split.
    """
    names = _folders(_split_folder(data, root, "train_split"))
    if len(names) != data.classes:
        raise InputError(
            f"expected {data.classes} classes, found {len(names)} folders",
            where=root / data.train_split,
            key="data.classes",
        )
    return (
        _listed(root / data.train_split, names),
        _listed(_split_folder(data, root, "test_split"), names),
    )


def _split_folder(data: Data, root: Path, key: str) -> Path:
    split: str = getattr(data, key)
    folder = root / split
    if not folder.is_dir():
        known = _folders(root)
        raise InputError(
            f"no folder for the split {split!r}",
            where=root,
            key=f"data.{key}",
            hint=did_you_mean(split, known) or f"the folders are {quoted(known) or 'none'}",
        )
    return folder


def _folders(folder: Path) -> list[str]:
    return sorted(
        entry.name for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."
    )


def _listed(folder: Path, names: list[str]) -> FolderSource:
    numbers = {name: number for number, name in enumerate(names)}
    files: list[str] = []
    labels: list[int] = []
    for name in _folders(folder):
        if name not in numbers:
            raise InputError(
                f"the class {name!r} is not in the training split",
                where=folder,
                key="data.path",
                hint=did_you_mean(name, names) or "every class needs a folder there",
            )
        found = sorted(
            entry.path
            for entry in os.scandir(folder / name)
            # what else lies about, such as an index of thumbnails, is no picture; and a pipe that
            # is named like one would never end
            if entry.is_file()
            and Path(entry.name).suffix.lower() in SUFFIXES
            and entry.name[0] != "."
        )
        files += found
        labels += [numbers[name]] * len(found)
    return FolderSource(tuple(files), torch.tensor(labels, dtype=torch.int64), tuple(names))
