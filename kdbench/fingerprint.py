"""Digests of code, files and folders: what is in them, whatever they are called."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path


def worker_digest() -> str:
    """Digest of the code that a worker runs: its results are only as old as this."""
    package = Path(__file__).parent
    return _digest_files(package, sorted((package / "worker").glob("*.py")))


@lru_cache(maxsize=64)
def fingerprint_path(path: Path) -> str:
    """Digest of the names and contents of a file, or of all files in a folder (16 hex digits)."""
    if path.is_file():
        return _digest_files(path.parent, [path])
    return _digest_files(path, sorted(found for found in path.rglob("*") if found.is_file()))


def _digest_files(root: Path, paths: Iterable[Path]) -> str:
    total = hashlib.blake2b(digest_size=8)
    for path in paths:
        with path.open("rb") as file:
            content = hashlib.file_digest(file, "blake2b").hexdigest()
        total.update(f"{path.relative_to(root).as_posix()}\0{content}\n".encode())
    return total.hexdigest()
