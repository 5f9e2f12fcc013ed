"""Whether `data.path` can be what it says, found out before any process is started for it."""

import os
from pathlib import Path

from kdbench.common.errors import InputError, did_you_mean, near_or_all, os_reason, short_repr
from kdbench.common.fingerprint import is_system_path
from kdbench.spec.settings import Data

_EXPECTED = "a .parquet file or a folder of parquet, of save_to_disk or of SPLIT/CLASS/PICTURE"
# Tables lie in these places; deeper ones no split is looked for in.
_TABLES = ("state.json", "*/state.json", "*.parquet", "*/*.parquet", "data/*/*.parquet")


def check_data_path(data: Data) -> None:
    """Check a local data set's place; a name on the hub is left to the cell's own process."""
    if data.source != "datasets" or data.path is None:
        return
    root, key = Path(data.path), "data.path"
    try:
        if not root.exists():
            _check_hub_name(data.path)
            return
        if is_system_path(root):  # refused where it would be read
            return
        if data.config is not None:
            root, key = root / data.config, "data.config"
            if not root.is_dir():
                problem = f"no such folder: {short_repr(str(root))}"
                raise InputError(problem, key=key, hint=_near(root))
        _check_kind(root, data.train_split, key)
    except OSError as error:
        problem = f"cannot read {short_repr(str(root))}: {os_reason(error)}"
        raise InputError(problem, key=key) from None


def _check_hub_name(path: str) -> None:
    """Refuse what is neither there nor a name on the hub, which is `owner/name`."""
    written_as_path = path.startswith((".", "/", "~")) or path.endswith((".parquet", "/"))
    if not written_as_path and path.count("/") == 1:
        return
    hint = _near(Path(path)) or "a path is relative to the folder that kdbench is started in"
    if path.startswith("~"):
        hint = f"write it out: {os.path.expanduser(path)}"  # noqa: PTH111 - as it was written
    raise InputError(
        "no such file or folder, and no name on the hub such as 'uoft-cs/cifar100': "
        f"{short_repr(path)}",
        key="data.path",
        hint=hint,
    )


def _check_kind(root: Path, split: str, key: str) -> None:
    """Check what a file or folder holds, by the names in it."""
    if root.suffix == ".parquet" and root.is_file():
        return
    found = "something else"
    if root.is_dir():
        if any(next(root.glob(pattern), None) for pattern in _TABLES):
            return
        entries = list(root.iterdir())
        folders = sorted(entry.name for entry in entries if entry.is_dir())
        if split in folders:
            return
        if folders:
            raise InputError(
                f"{short_repr(str(root))} has no folder for the split {split!r}",
                key="data.train_split",
                hint=near_or_all(split, folders, "folders"),
            )
        found = "a folder without any" if entries else "an empty folder"
    raise InputError(f"expected {_EXPECTED}, found {found}: {short_repr(str(root))}", key=key)


def _near(path: Path) -> str | None:
    """Hint at names near to a path's, in the first of its folders that is there."""
    for part in (path, *path.parents):
        if part.parent.is_dir():
            return did_you_mean(part.name, [entry.name for entry in part.parent.iterdir()])
    return None
