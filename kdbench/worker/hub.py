"""Where a teacher's checkpoint is: in a local folder, or at a commit of a repository on the hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, scan_cache_dir
from huggingface_hub.errors import (
    CacheNotFound,
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)

from kdbench.cell import Teacher as Shape
from kdbench.errors import InputError, quoted

CONFIG = "config.json"


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
