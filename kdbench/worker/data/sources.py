"""Where pictures come from: the hub, `save_to_disk`, parquet and image folders, checked."""

from pathlib import Path

from kdbench.common.errors import InputError
from kdbench.spec.settings import Data
from kdbench.worker.data.columns import TableSource, open_columns
from kdbench.worker.data.folder import FolderSource, open_folder

#: The encoded pictures of one split with their labels.
Source = FolderSource | TableSource


def open_sources(data: Data) -> tuple[Source, Source]:
    """Open the training and test split of `source = "datasets"`, and check all but the pictures.

    A path that exists is a parquet file, or a folder: one that `save_to_disk` wrote (a
    `DatasetDict`, or a `Dataset` per split), one with parquet files, or one of pictures in
    ImageNet's layout. Any other is a name on the hub.
    """
    root = Path(str(data.path))
    if root.exists() and data.config is not None:
        root /= data.config
        if not root.is_dir():
            raise InputError(f"no such folder: {root}", where=data.path, key="data.config")
    pictures = root.is_dir() and not _holds_tables(root)
    sources = open_folder(data, root) if pictures else open_columns(data, root)
    for key, source, split in (
        ("train_images", sources[0], data.train_split),
        ("test_images", sources[1], data.test_split),
    ):
        found, expected = len(source.labels), getattr(data, key)
        if found != expected or not found:
            raise InputError(
                f"expected {expected} images, found {found}"
                if found
                else "the split is empty: it has no picture",
                where=f"{data.path} ({split})",
                key=f"data.{key}",
                hint=source.passed_over,
            )
    return sources


def _holds_tables(folder: Path) -> bool:
    """Whether a folder holds tables of the `datasets` library, not bare pictures."""
    saved = any(folder.glob("state.json")) or any(folder.glob("*/state.json"))
    return saved or next(folder.rglob("*.parquet"), None) is not None
