"""Where pictures come from: the hub, `save_to_disk`, parquet and image folders, checked."""

from pathlib import Path
from typing import Protocol

from torch import Tensor

from kdbench.common.errors import InputError
from kdbench.spec.settings import Data
from kdbench.worker.data.columns import open_columns
from kdbench.worker.data.folder import open_folder


class Source(Protocol):
    """The encoded pictures of one split with their labels."""

    @property
    def labels(self) -> Tensor:
        """Class numbers from 0: int64, [n], on the host."""

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The classes' names in the order of their numbers; None: they have none."""

    @property
    def picture_key(self) -> str:
        """Key of the matrix file that names the pictures, for errors."""

    @property
    def passed_over(self) -> str | None:
        """What lies beside the pictures and was not read, in words; None: nothing."""

    def encoded(self, row: int) -> bytes | Path:
        """Return a picture as it is stored, or its file.

        Raises:
            InputError: there is none.
        """

    def where(self, row: int) -> str:
        """Name a picture in an error."""


def open_sources(data: Data) -> tuple[Source, Source]:
    """Open the training and test split of `source = "datasets"`, and check all but the pictures.

    A path that exists is a parquet file, or a folder: one that `save_to_disk` wrote (a
    `DatasetDict`, or a `Dataset` per split), one with parquet files, or one of pictures in
    ImageNet's layout. Any other is a name on the hub.

    Raises:
        InputError: a split or column is missing, or holds something else than the settings say.
    """
    root = Path(str(data.path))
    if root.exists() and data.config is not None:
        root /= data.config
        if not root.is_dir():
            raise InputError(f"no such folder: {root}", where=data.path, key="data.config")
    if root.is_dir() and not holds_tables(root):
        sources: tuple[Source, Source] = open_folder(data, root)
    else:
        sources = open_columns(data, root)
    for key, source, split in (
        ("train_images", sources[0], data.train_split),
        ("test_images", sources[1], data.test_split),
    ):
        found, expected = len(source.labels), getattr(data, key)
        where = f"{data.path} ({split})"
        if not found:
            raise InputError(
                "the split is empty: it has no picture",
                where=where,
                key=f"data.{key}",
                hint=source.passed_over,
            )
        if found != expected:
            raise InputError(
                f"expected {expected} images, found {found}",
                where=where,
                key=f"data.{key}",
                hint=source.passed_over,
            )
    return sources


def holds_tables(folder: Path) -> bool:
    """Whether a folder holds tables of the `datasets` library, not bare pictures."""
    saved = any(folder.glob("state.json")) or any(folder.glob("*/state.json"))
    return saved or next(folder.rglob("*.parquet"), None) is not None
