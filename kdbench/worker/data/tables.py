"""Tables of the `datasets` library: from the hub, from `save_to_disk` and from parquet.

Nothing here runs code that comes with a data set, and no pickle is read: local files are parquet
or Arrow, and what the hub's name leads to is left to `datasets`, which has no scripts any more.
"""

import glob
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kdbench.common.errors import InputError, near_or_all
from kdbench.spec.settings import Data
from kdbench.worker.data.untrusted import check_local, check_parquet, check_saved

# A bare name would make `datasets` look for one of its own readers, such as "pandas" for pickles.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_EMPTY = "the split is empty: it has no picture"
_PART = re.compile(r"(?P<split>.+?)(-\d+(-of-\d+)?)?\.parquet")


def open_tables(data: Data, root: Path) -> tuple[Any, Any]:
    """Open the training and test split."""
    opener: Callable[[Data, Path, str], Any]
    if root.exists():
        check_local(root)
    if root.is_file() or (root.is_dir() and not _saved_splits(root)):
        opener = _parquet
    else:
        opener = _saved if root.is_dir() else _hub
    return opener(data, root, "train_split"), opener(data, root, "test_split")


def _saved_splits(root: Path) -> list[str]:
    if (root / "state.json").is_file():
        raise InputError(
            "expected a folder for each split, found a single Dataset",
            where=root,
            key="data.path",
            hint="save a DatasetDict, or each split into a folder of its own",
        )
    return sorted(path.parent.name for path in root.glob("*/state.json"))


def _saved(data: Data, root: Path, key: str) -> Any:  # datasets has no type stubs
    import datasets  # noqa: PLC0415 - slow to import, and rarely needed

    split, known = getattr(data, key), _saved_splits(root)
    if split not in known:
        raise _no_split(split, known, root, key)
    try:
        if check_saved(root / split):
            # in no format: that of its author is none of ours
            return datasets.load_from_disk(str(root / split)).with_format(None)
    except InputError:
        raise
    except Exception as error:
        raise _cannot_load(error, root / split, "data.path", "save it again") from error
    # it was written without a file, and cannot be read back
    raise InputError(_EMPTY, where=root / split, key=f"data.{key}")


def _parquet(data: Data, root: Path, key: str) -> Any:
    import datasets  # noqa: PLC0415

    expression = getattr(data, key)
    split = expression.partition("[")[0]  # "train[:80%]" is a part of the split "train"
    files = _single(root, split, key) if root.is_file() else _parts(root, split)
    if not files:
        raise _no_split(split, _known_splits(root), root, key)
    check_parquet(files, key=f"data.{key}", cache=Path(datasets.config.HF_DATASETS_CACHE))
    try:
        return datasets.load_dataset(
            "parquet", data_files={split: [str(file) for file in files]}, split=expression
        )
    except Exception as error:
        raise _cannot_load(error, root, f"data.{key}", "check its parquet files") from error


def _single(file: Path, split: str, key: str) -> list[Path]:
    """Take a single file as the split "train"; the test split can only be a part of that."""
    if file.suffix != ".parquet":
        raise InputError("expected a .parquet file or a folder", where=file, key="data.path")
    if split != "train":
        raise InputError(
            f"a single file is the split 'train', found {split!r}",
            where=file,
            key=f"data.{key}",
            hint='cut it: train_split = "train[:80%]", test_split = "train[80%:]"',
        )
    return [file]


def _parts(root: Path, split: str) -> list[Path]:
    """Find a split's files: SPLIT.parquet, SPLIT-00000-of-00001.parquet or SPLIT/*.parquet."""
    name = glob.escape(split)
    for folder in (root, root / "data"):  # the hub keeps them in `data`
        parts = (
            path
            for pattern in (f"{name}.parquet", f"{name}-*.parquet")
            for path in folder.glob(pattern)
            if (found := _PART.fullmatch(path.name)) and found["split"] == split
        )
        if files := sorted(parts) or sorted(folder.glob(f"{name}/*.parquet")):
            return files
    return []


def _known_splits(root: Path) -> list[str]:
    names = set()
    for path in root.rglob("*.parquet"):
        found = _PART.fullmatch(path.name)
        inside = path.parent in (root, root / "data")
        names.add(found["split"] if found and inside else path.parent.name)
    return sorted(names)


def _hub(data: Data, _root: Path, key: str) -> Any:
    import datasets  # noqa: PLC0415

    name = str(data.path)
    if not _HUB_NAME.fullmatch(name):
        raise InputError(
            "no such file or folder, and no name on the hub",
            where=name,
            key="data.path",
            hint="the hub's names are like 'uoft-cs/cifar100'",
        )
    try:
        return datasets.load_dataset(
            name, data.config, split=getattr(data, key), revision=data.revision
        )
    except Exception as error:
        message = str(error)
        blamed = "data.config" if "config" in message.lower() else "data.path"
        if "split" in message:
            blamed = f"data.{key}"
        fetch = f"where there is network: hf download --repo-type dataset {name}"
        raise _cannot_load(error, name, blamed, fetch) from error


def _no_split(split: str, known: list[str], where: Path, key: str) -> InputError:
    hint = near_or_all(split, known, "splits")
    return InputError(f"no split {split!r}", where=where, key=f"data.{key}", hint=hint)


def _cannot_load(error: Exception, where: object, key: str, hint: str) -> InputError:
    if "corresponds to no data" in str(error):  # how `datasets` calls it
        return InputError(_EMPTY, where=where, key=key)
    message = f"{type(error).__name__}: {' '.join(str(error).splitlines()[:2])}"
    return InputError(f"cannot load the data set: {message}", where=where, key=key, hint=hint)
