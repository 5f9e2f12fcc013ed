"""The image and label columns of a table, checked."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from kdbench.common.errors import InputError, first_line, near_or_all, short_repr
from kdbench.spec.settings import Data
from kdbench.worker.data.tables import open_tables

# What other programs keep a picture's parts as.
_KINDS = {
    "bytes": ("binary", "large_binary", "binary_view"),
    "path": ("string", "large_string", "string_view"),
}


@dataclass(frozen=True)
class TableSource:
    """A split of a table with an image column, which is decoded by us and not by the library."""

    #: of the image column alone, undecoded; datasets has no type stubs
    table: Any
    name: str
    #: int64, [n], on the host
    labels: Tensor
    class_names: tuple[str, ...] | None
    #: where paths of pictures lead; None: nowhere
    folder: Path | None

    picture_key: ClassVar[str] = "data.image_column"
    #: every row is a picture
    passed_over: ClassVar[None] = None

    def encoded(self, row: int) -> bytes | Path:
        """Return a picture's bytes, or the file in the data set's folder that its row names."""
        (picture,) = self.table[row].values()
        encoded: bytes | None = None if picture is None else picture["bytes"]
        if encoded is not None:
            return encoded
        path, found = None if picture is None else picture["path"], "none"
        if path is not None:
            file = _file_in(self.folder, path)
            if file is not None:
                return file
            found = f"the path {short_repr(path)}, which is no file here"
        raise InputError(
            f"expected a picture, found {found}", where=self.where(row), key=self.picture_key
        )

    def where(self, row: int) -> str:
        """Name a picture in an error."""
        return f"{self.name}, row {row}"


def _file_in(folder: Path | None, path: str) -> Path | None:
    """Find a file in a folder; a row is not to lead to whatever else this machine has."""
    if folder is None or "\0" in path or not os.path.isfile(folder / path):  # noqa: PTH113
        return None
    file = (folder / path).resolve()
    return file if file.is_relative_to(folder.resolve()) else None


def open_columns(data: Data, root: Path) -> tuple[TableSource, TableSource]:
    """Open both splits of a table, and check their columns and labels."""
    tables = open_tables(data, root)
    splits = (data.train_split, data.test_split)
    names = [f"{data.path} ({split})" for split in splits]
    for table, name in zip(tables, names, strict=True):
        _check_columns(table, data, name)
    _check_class_names(*tables, data)
    train, test = (
        TableSource(
            _encoded_column(table, data.image_column, name),
            name,
            labels=_labels(table, data, name),
            class_names=_class_names(table, data),
            folder=root if root.is_dir() else root.parent if root.exists() else None,
        )
        for table, name in zip(tables, names, strict=True)
    )
    return train, test


def _check_columns(table: Any, data: Data, where: str) -> None:
    for key in ("image_column", "label_column"):
        column = getattr(data, key)
        if column not in table.column_names:
            hint = near_or_all(column, table.column_names, "columns")
            raise InputError(f"no column {column!r}", where=where, key=f"data.{key}", hint=hint)
    try:  # what offsets point to must be the columns': Arrow files are read as they are
        table.select_columns([data.image_column, data.label_column]).data.validate(full=True)
    except Exception as error:  # whatever Arrow calls it
        problem = f"damaged: {type(error).__name__}: {first_line(error)}"
        raise InputError(problem, where=where, key="data.path") from error


def _check_class_names(train: Any, test: Any, data: Data) -> None:
    """Two splits that were saved apart may number their classes differently."""
    first, second = (_class_names(table, data) for table in (train, test))
    for number, (here, there) in enumerate(zip(first or (), second or (), strict=False)):
        if here != there:
            raise InputError(
                f"expected the same classes in both splits, found that class {number} is {here!r} "
                f"in {data.train_split} and {there!r} in {data.test_split}",
                where=data.path,
                key="data.label_column",
                hint="cast both columns to one ClassLabel",
            )


def _class_names(table: Any, data: Data) -> tuple[str, ...] | None:
    names = getattr(table.features[data.label_column], "names", None)
    return None if names is None else tuple(names)


def _encoded_column(table: Any, column: str, where: str) -> Any:
    """Keep the image column alone, undecoded: rows of {"bytes", "path"}."""
    import datasets  # noqa: PLC0415 - slow to import, and rarely needed

    feature = table.features[column]
    if not isinstance(feature, datasets.Image) and not _may_hold_pictures(feature):
        raise InputError(
            f"expected a column of images, found {feature}",
            where=where,
            key="data.image_column",
            hint="cast it to datasets.Image() and save it again",
        )
    table = table.select_columns([column])
    if isinstance(feature, dict):  # one of the two may be left out, or null
        kinds = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        table = table.cast_column(column, {name: kinds[name] for name in feature})
    return table.cast_column(column, datasets.Image(decode=False))


def _may_hold_pictures(feature: Any) -> bool:
    """Whether other programs store pictures so: as bytes, with or without a path."""
    if isinstance(feature, dict):
        kinds = {name: getattr(value, "dtype", None) for name, value in feature.items()}
        # where every row has none of the two, as a path with bytes, its type is null
        return set(kinds) <= {"bytes", "path"} and all(
            kind == "null" or kind in _KINDS[name] for name, kind in kinds.items()
        )
    return getattr(feature, "dtype", None) in _KINDS["bytes"]


def _labels(table: Any, data: Data, where: str) -> Tensor:
    feature, column = table.features[data.label_column], data.label_column
    names = _class_names(table, data)
    if names is not None and len(names) != data.classes:
        problem = f"expected {data.classes} classes, found {len(names)} names of classes"
        raise InputError(problem, where=where, key="data.classes")
    kind = str(getattr(feature, "dtype", feature))
    if not kind.startswith(("int", "uint")):
        raise InputError(
            f"expected integers, found {kind}",
            where=where,
            key="data.label_column",
            hint="class_encode_column() of the datasets library numbers the classes",
        )
    if not len(table):
        return torch.empty(0, dtype=torch.int64)
    values = table.select_columns([column]).with_format("arrow")[:].column(0)
    if values.null_count:
        row = int(np.flatnonzero(values.is_null().to_numpy())[0])
        problem = f"expected a label, found none in row {row}"
        raise InputError(problem, where=where, key="data.label_column")
    numbers = values.to_numpy()
    wrong = np.flatnonzero((numbers < 0) | (numbers >= data.classes))
    if len(wrong):
        row = int(wrong[0])
        raise InputError(
            f"expected labels from 0 to {data.classes - 1}, found {numbers[row]} in row {row}",
            where=where,
            key="data.classes",
            hint="-1 marks pictures without a label" if numbers[row] == -1 else None,
        )
    return torch.from_numpy(numbers.astype(np.int64))
