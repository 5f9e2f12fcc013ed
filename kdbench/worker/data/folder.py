"""A folder of pictures in ImageNet's layout: FOLDER/SPLIT/CLASS/PICTURE."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from kdbench.common.errors import InputError, did_you_mean, near_or_all, printable, quoted, truncate
from kdbench.spec.settings import Data
from kdbench.worker.data.decode import SUFFIXES, is_picture

# What unpacking a Mac's archive leaves, full of files that are called like the pictures.
_LITTER = "__MACOSX"
# Endings that a note counts; a folder may hold as many as files.
_MOST_KINDS, _LONGEST_KIND = 8, 20


@dataclass(frozen=True)
class FolderSource:
    """The pictures of one split, class after class, each class by file name."""

    files: tuple[str, ...]
    #: int64, [n]
    labels: Tensor
    #: of the training split's folders, for both splits
    class_names: tuple[str, ...]
    #: how many other files lie among them, by ending or kind
    others: Mapping[str, int] = field(default_factory=dict)
    picture_key: str = "data.path"

    @property
    def passed_over(self) -> str | None:
        """What lies among the pictures and was not read, in words; None: nothing."""
        if not self.others:
            return None
        counted = sorted(self.others.items(), key=lambda item: (-item[1], item[0]))
        named = [f"{count:,} {kind}" for kind, count in counted[:_MOST_KINDS]]
        if len(counted) > _MOST_KINDS:
            named.append(f"{sum(count for _, count in counted[_MOST_KINDS:]):,} others")
        return f"passed over, as no pictures that are read here: {', '.join(named)}"

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
    """
    names = _folders(_split_folder(data, root, "train_split"))
    folder = root / data.train_split
    if len(names) != data.classes:
        problem = f"expected {data.classes} classes, found {len(names)} folders"
        raise InputError(problem, where=folder, key="data.classes")
    train = _listed(folder, names)
    found = set(train.labels.tolist())
    empty = [name for number, name in enumerate(names) if number not in found]
    if empty:
        raise InputError(
            f"expected pictures of every class, found none of {quoted(empty)}",
            where=folder,
            key="data.path",
            hint=train.passed_over or "remove the folders, and count without them in data.classes",
        )
    return train, _listed(_split_folder(data, root, "test_split"), names)


def _split_folder(data: Data, root: Path, key: str) -> Path:
    split: str = getattr(data, key)
    folder = root / split
    if not folder.is_dir():
        problem = f"no folder for the split {split!r}"
        hint = near_or_all(split, _folders(root), "folders")
        raise InputError(problem, where=root, key=f"data.{key}", hint=hint)
    return folder


def _folders(folder: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and entry.name[0] != "." and entry.name != _LITTER
    )


def _listed(folder: Path, names: list[str]) -> FolderSource:
    numbers = {name: number for number, name in enumerate(names)}
    files: list[str] = []
    labels: list[int] = []
    others: Counter[str] = Counter()
    for name in _folders(folder):
        if name not in numbers:
            raise InputError(
                f"the class {name!r} is not in the training split",
                where=folder,
                key="data.path",
                hint=did_you_mean(name, names) or "every class needs a folder there",
            )
        found = []
        for entry in os.scandir(folder / name):
            if entry.name[0] == ".":  # what a file manager leaves, as `.DS_Store` or `._x.jpg`
                continue
            kind = _other_kind(entry)
            if kind is None:
                found.append(entry.path)
            else:
                others[printable(truncate(kind, _LONGEST_KIND))] += 1
        files += sorted(found)
        labels += [numbers[name]] * len(found)
    numbered = torch.tensor(labels, dtype=torch.int64)
    return FolderSource(tuple(files), numbered, tuple(names), others)


def _other_kind(entry: os.DirEntry[str]) -> str | None:
    """Say what something is that is no picture by its ending or, without one, by its content.

    A pipe that is named like a picture would never end, so only files are opened.
    """
    if not entry.is_file():
        if entry.is_dir():
            return "folders"
        return "broken links" if entry.is_symlink() else "no regular files"
    suffix = Path(entry.name).suffix.lower()
    if not suffix:
        return None if is_picture(Path(entry.path)) else "without an ending"
    return None if suffix in SUFFIXES else suffix
