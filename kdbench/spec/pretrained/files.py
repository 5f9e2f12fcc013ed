"""A checkpoint's files: found in a folder, and read as what a stranger wrote."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.common.errors import InputError, printable
from kdbench.spec.settings import Teacher

CONFIG = "config.json"
# A file that says what the weights are; a million classes have their names in it.
_MOST_BYTES = 2**26
# What git leaves of a large file that was not fetched (git-lfs, docs/spec.md).
_POINTER = b"version https://git-lfs.github.com/spec/"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A checkpoint whose configuration is at hand; its weights may still be on the hub."""

    #: hub name, or local folder
    name: str
    #: the matrix file's table of the teacher, for errors: `teachers.NAME`
    table: str
    #: where config.json is: the local folder, or the commit's in the hub's cache
    folder: Path
    #: the commit that everything is read at; None: a local folder
    revision: str | None

    def error(
        self, problem: str, *, key: str = "checkpoint", hint: str | None = None
    ) -> InputError:
        """Make the error that names this checkpoint and a key of its teacher."""
        return InputError(problem, where=self.name, key=f"{self.table}.{key}", hint=hint)

    @property
    def whole_again(self) -> str:
        """What to do about files that are missing or damaged."""
        if self.revision is None:
            return "copy the folder again, or save it again with save_pretrained"
        return f"{fetch_command(self.name, self.revision)} --force-download"

    def has(self, name: str) -> bool:
        """Whether there is a file of this name, be it one that cannot be read."""
        return os.path.lexists(self.folder / name)


def fetch_command(name: str, revision: str | None) -> str:
    """Say how a repository is fetched from the hub."""
    chosen = f" --revision {revision}" if revision else ""
    return f"where there is network: hf download {name}{chosen}"


def find_local(teacher: Teacher, table: str) -> Checkpoint | None:
    """Find a checkpoint with a config.json in a local folder; None where its name is on the hub."""
    name = str(teacher.checkpoint)
    if not Path(name).exists():
        return None
    found = Checkpoint(name=name, table=table, folder=Path(name), revision=None)
    if not (Path(name) / CONFIG).is_file():
        raise found.error(
            f"expected a folder with {CONFIG}, found none",
            hint="save_pretrained writes one beside model.safetensors",
        )
    return found


def read_json(checkpoint: Checkpoint, name: str) -> Any:  # noqa: ANN401
    """Read a file of a checkpoint that describes it."""
    path = checkpoint.folder / name
    try:
        if not path.is_file():  # a folder, a pipe that never ends, a link to nothing
            raise checkpoint.error(f"expected a file {name}, found something else")
        if path.stat().st_size > _MOST_BYTES:
            raise checkpoint.error(f"expected {name} of at most {_MOST_BYTES} bytes, found more")
        held = path.read_bytes()
        check_fetched(checkpoint, name, held)
        return json.loads(held.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise checkpoint.error(
            f"cannot read {name}: {type(error).__name__}: {printable(error)}",
            hint=checkpoint.whole_again,
        ) from error


def check_fetched(checkpoint: Checkpoint, name: str, beginning: bytes) -> None:
    """Refuse a file that git has left to be fetched."""
    if beginning.startswith(_POINTER):
        fetch = f"`git lfs pull` in {checkpoint.name} fetches it"
        raise checkpoint.error(
            f"expected {name} itself, found a git-LFS pointer to it",
            hint=fetch if checkpoint.revision is None else checkpoint.whole_again,
        )
