"""Digests of code, files and folders: what is in them, whatever they are called."""

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def worker_digest() -> str:
    """Digest of the code that a worker runs: its results are only as old as this.

    What it reads of a checkpoint is decided outside of it, for whoever plans a run to see as well.
    """
    read = [_PACKAGE / "spec" / "preprocessing.py"]
    for folder in ("worker", "spec/pretrained"):
        read += sorted((_PACKAGE / folder).rglob("*.py"))
    return _digest_files(_PACKAGE, read)


def predict_digest() -> str:
    """Digest of the code that turns a worker's code into a prediction."""
    return _digest_files(_PACKAGE, sorted((_PACKAGE / "predict").rglob("*.py")))


@lru_cache(maxsize=64)
def fingerprint_path(path: Path) -> str:
    """Digest the names and contents of a file, or of all files in a folder (16 hex digits).

    What is neither, such as a pipe, is passed over: it may never end. The system's own folders are
    an OSError: somebody else's matrix file is not to have a whole disk or the kernel's memory read.
    """
    if is_system_path(path):
        raise OSError("a folder of the system")
    if path.is_file():
        return _digest_files(path.parent, [path])
    return _digest_files(path, sorted(found for found in path.rglob("*") if found.is_file()))


def is_system_path(path: Path) -> bool:
    """Whether a path is all of the disk, or the kernel's."""
    there = path.resolve()
    return there == there.parent or there.is_relative_to("/proc") or there.is_relative_to("/sys")


@lru_cache(maxsize=64)
def fingerprint_module(name: str) -> str:
    """Digest of the code of a top-level module or package, which is found but not imported.

    A package that is not there, or has no files, has the digest of nothing: whoever imports it
    will say so.
    """
    spec = find_spec(name)
    if spec is None:
        return _digest_files(Path(), [])
    roots = [Path(root) for root in spec.submodule_search_locations or ()]
    if not roots and spec.origin is not None:
        return _digest_files(Path(spec.origin).parent, [Path(spec.origin)])
    return hashlib.blake2b(
        "".join(_digest_files(root, sorted(root.rglob("*.py"))) for root in roots).encode(),
        digest_size=8,
    ).hexdigest()


def _digest_files(root: Path, paths: Iterable[Path]) -> str:
    total = hashlib.blake2b(digest_size=8)
    for path in paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").hexdigest()
        total.update(
            f"{path.relative_to(root).as_posix()}\0{content}\n".encode(errors="surrogateescape")
        )
    return total.hexdigest()
