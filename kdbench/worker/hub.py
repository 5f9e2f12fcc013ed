"""Where a teacher's checkpoint is: in a local folder, or at a commit of a repository on the hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import constants, hf_hub_download, scan_cache_dir
from huggingface_hub.errors import (
    CacheNotFound,
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)

from kdbench.errors import InputError, brief, quoted
from kdbench.settings import Teacher as Shape

CONFIG = "config.json"
# A file that says what the weights are; a million classes have their names in it.
_MOST_BYTES = 2**26
_INDEX = "model.safetensors.index.json"


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
        fetch = _fetch(self.name, self.revision)
        return f"{fetch} --force-download"


def find_checkpoint(shape: Shape, table: str) -> Checkpoint:
    """Find a teacher's checkpoint, and settle which commit of its repository is meant.

    Branches and tags move: everything is read at the commit that they stand at now.

    Raises:
        InputError: there is none, or not at this revision, or it has no config.json.
    """
    name = str(shape.checkpoint)
    if Path(name).exists():
        found = Checkpoint(name=name, table=table, folder=Path(name), revision=None)
        if not (Path(name) / CONFIG).is_file():
            raise found.error(
                f"expected a folder with {CONFIG}, found none",
                hint="save_pretrained writes one beside model.safetensors",
            )
        return found
    try:
        config = Path(hf_hub_download(name, CONFIG, revision=shape.revision))
    except Exception as error:
        raise _not_found(error, name, shape.revision, table) from error
    # .../snapshots/COMMIT/config.json
    return Checkpoint(name=name, table=table, folder=config.parent, revision=config.parent.name)


def read_json(checkpoint: Checkpoint, name: str) -> Any:  # noqa: ANN401
    """Read a file of a checkpoint that describes it.

    Raises:
        InputError: it cannot be read, or is too large to be one.
    """
    path = checkpoint.folder / name
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise checkpoint.error(f"expected {name} of at most {_MOST_BYTES} bytes, found more")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise checkpoint.error(
            f"cannot read {name}: {type(error).__name__}: {error}", hint=checkpoint.whole_again
        ) from error


def check_files(checkpoint: Checkpoint) -> None:
    """Refuse a folder whose weights are elsewhere; of the hub's, its library sees to that.

    Raises:
        InputError: it is an adapter to other weights, or its index names files elsewhere.
    """
    folder = checkpoint.folder
    if checkpoint.revision is not None:
        return
    if (folder / "adapter_config.json").exists():
        raise checkpoint.error(
            "expected whole weights, found an adapter to others",
            hint="merge it into its base model, and save that with save_pretrained",
        )
    if not (folder / _INDEX).is_file():
        return
    index = read_json(checkpoint, _INDEX)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict):
        raise checkpoint.error(f"expected a weight_map in {_INDEX}, found none")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name:
            problem = f"expected names of files beside it in {_INDEX}, found {brief(name)}"
            raise checkpoint.error(problem)


def _not_found(error: Exception, name: str, revision: str | None, table: str) -> InputError:
    fetch, key = _fetch(name, revision), f"{table}.checkpoint"
    if isinstance(error, RevisionNotFoundError):
        return InputError(
            f"the repository has no revision {revision!r}",
            where=name,
            key=f"{table}.revision",
            hint="expected a branch, a tag or a commit of 40 digits",
        )
    if isinstance(error, LocalEntryNotFoundError):  # no network, or told not to use it
        cached = _cached_revisions(name)
        if revision is not None and cached:
            return InputError(
                f"the revision {revision!r} is not in the cache, which has {quoted(cached)}",
                where=name,
                key=f"{table}.revision",
                hint=fetch,
            )
    elif isinstance(error, EntryNotFoundError):
        return InputError(
            f"the repository has no {CONFIG}",
            where=name,
            key=key,
            hint="expected a ViT that save_pretrained wrote",
        )
    told = (str(error).splitlines() or [""])[0]
    return InputError(
        f"cannot load the checkpoint: {type(error).__name__}: {told}",
        where=name,
        key=key,
        hint=fetch,
    )


def _fetch(name: str, revision: str | None) -> str:
    chosen = f" --revision {revision}" if revision else ""
    return f"where there is network: hf download {name}{chosen}"


def _cached_revisions(name: str) -> list[str]:
    """Branches, tags and bare commits of a repository in the hub's cache."""
    try:
        held = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return []
    return sorted(
        revision
        for repository in held.repos
        if (repository.repo_type, repository.repo_id) == ("model", name)
        for commit in repository.revisions
        for revision in commit.refs or {commit.commit_hash}
    )
