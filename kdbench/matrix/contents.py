"""Digests of what a cell reads from local files: their names do not say what is in them."""

from collections.abc import Iterator
from pathlib import Path

from kdbench.common.errors import InputError, short_repr
from kdbench.common.fingerprint import fingerprint_module, fingerprint_path
from kdbench.spec.method import plugin_module
from kdbench.spec.settings import Data, Teacher


def content_digests(
    method: str, teacher_name: str | None, teacher: Teacher | None, data: Data, where: Path
) -> tuple[tuple[str, str], ...]:
    """Digest what a cell reads: a plug-in's code, and local files of the teacher and of the data.

    Returns pairs of what it is of (method, teacher, data) and the digest; raises InputError if
    something cannot be read.
    """
    found = []
    module = plugin_module(method)
    if module is not None:
        found.append(("method", fingerprint_module(module)))
    if teacher is not None and teacher.weights == "pretrained":
        key = f"teachers.{teacher_name}.checkpoint"
        found += _local_digest("teacher", teacher.checkpoint, where, key)
    if data.source == "datasets":
        found += _local_digest("data", data.path, where, "data.path")
    return tuple(found)


def _local_digest(kind: str, path: str | None, where: Path, key: str) -> Iterator[tuple[str, str]]:
    """Digest a local path, if it is one; else it is a name on the hub, and has a revision."""
    if path is None or not Path(path).exists():
        return
    try:
        yield kind, fingerprint_path(Path(path))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise InputError(
            f"cannot read {short_repr(path)}: {reason}", where=where, key=key
        ) from None
