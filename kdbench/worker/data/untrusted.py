"""A stranger's data set, looked at before the `datasets` library opens it.

That library is made to be obliging: it unpacks what looks like an archive whatever its name says,
takes `::` in a path for a chain of file systems, and opens the files that a list names.
"""

import json
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kdbench.common.errors import InputError, first_line, short_repr

_MAGIC = b"PAR1"
_POINTER = b"version https://git-lfs.github.com/spec/"
# More rows than any split may have images.
_MOST_ROWS = 10**9
# Of the files that describe a table; one with the names of a million classes is smaller.
_MOST_BYTES = 2**26


def is_pointer(picture: bytes | Path) -> bool:
    """Whether bytes, or a file, are what git-LFS keeps in the place of a file."""
    if isinstance(picture, bytes):
        return picture.startswith(_POINTER)
    with suppress(OSError), picture.open("rb") as file:
        return file.read(len(_POINTER)) == _POINTER
    return False


def check_local(root: Path) -> None:
    """Refuse a name that is there and means something else to the library."""
    if "::" in str(root) or "://" in str(root):
        problem = "expected a path without '::', found one"
        raise InputError(problem, where=root, key="data.path", hint="rename the folder")


def check_parquet(files: Sequence[Path], *, key: str, cache: Path) -> None:
    """Check that files are parquet, and that what they say they hold has room."""
    rows = size = 0
    for file in files:
        check_local(file)
        if file.is_file():
            _check_no_pointer(file, "a parquet file", key)
        try:
            metadata = _metadata(file)
        except (OSError, pa.ArrowException, ValueError) as error:
            problem = "expected a parquet file, found another or a damaged one"
            raise InputError(f"{problem}: {first_line(error)}", where=file, key=key) from error
        rows += metadata.num_rows
        size += sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
    if rows > _MOST_ROWS:
        problem = f"expected at most {_MOST_ROWS:,} rows, found {rows:,}"
        raise InputError(problem, where=files[0].parent, key=key)
    there = next((folder for folder in (cache, *cache.parents) if folder.exists()), Path("/"))
    free = shutil.disk_usage(there).free
    if size > free:
        raise InputError(
            f"the tables have {size:,} bytes when they are read, found {free:,} free in {there}",
            where=files[0].parent,
            key=key,
            hint="HF_DATASETS_CACHE names another place",
        )


def _check_no_pointer(file: Path, expected: str, key: str) -> None:
    if is_pointer(file):
        problem = f"expected {expected}, found the git-LFS pointer to one"
        raise InputError(problem, where=file, key=key, hint="git lfs pull fetches it")


def _metadata(file: Path) -> Any:  # pyarrow has no type stubs
    if not file.is_file():
        raise ValueError("no file")
    with file.open("rb") as opened:
        if opened.read(len(_MAGIC)) != _MAGIC:
            raise ValueError(f"it does not begin with {_MAGIC.decode()}")
    return pq.read_metadata(file)


def check_saved(folder: Path) -> list[str]:
    """Check what describes a split that `save_to_disk` wrote; return its Arrow files' names.

    Damage shows as whatever reading raises.
    """
    for name in ("state.json", "dataset_info.json"):
        path = folder / name
        if not path.exists():
            continue
        if not path.is_file():
            raise ValueError(f"{name} is no file")
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"{name} has more than {_MOST_BYTES} bytes")
    state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    names = [entry["filename"] for entry in state["_data_files"]]
    for name in names:
        if Path(name).name != name:
            raise InputError(
                f"expected names of files beside it, found {short_repr(name)}",
                where=folder / "state.json",
                key="data.path",
            )
        if not (folder / name).is_file():
            raise FileNotFoundError(f"there is no file {short_repr(name)}")
        _check_no_pointer(folder / name, "an Arrow file", "data.path")
    return names
