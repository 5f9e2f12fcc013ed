"""Where a teacher's checkpoint is: in a local folder, or at a commit of a repository on the hub."""

from pathlib import Path

from huggingface_hub import constants, hf_hub_download, scan_cache_dir, try_to_load_from_cache
from huggingface_hub.errors import (
    CacheNotFound,
    EntryNotFoundError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)

from kdbench.common.errors import InputError, first_line, quoted
from kdbench.spec.pretrained.files import CONFIG, Checkpoint, fetch_command, find_local
from kdbench.spec.pretrained.processor import FILES as PROCESSOR_FILES
from kdbench.spec.settings import Teacher as Shape


def find_checkpoint(shape: Shape, table: str) -> Checkpoint:
    """Find a teacher's checkpoint, and the commit of its repository that is meant.

    Branches and tags move: everything is read at the commit that they stand at now.
    """
    local = find_local(shape, table)
    if local is not None:
        return local
    name = str(shape.checkpoint)
    try:
        config = Path(hf_hub_download(name, CONFIG, revision=shape.revision))
    except Exception as error:
        raise _not_found(error, name, shape.revision, table) from error
    # .../snapshots/COMMIT/config.json
    return Checkpoint(name=name, table=table, folder=config.parent, revision=config.parent.name)


def fetch_processor(checkpoint: Checkpoint) -> None:
    """Download what a checkpoint says of its pixels, if it says anything."""
    if checkpoint.revision is None:
        return
    unknown = []
    for name in PROCESSOR_FILES:
        try:
            hf_hub_download(checkpoint.name, name, revision=checkpoint.revision)
        except LocalEntryNotFoundError:  # no network, or it is not to be used
            if try_to_load_from_cache(checkpoint.name, name, revision=checkpoint.revision) is None:
                unknown.append(name)
        except EntryNotFoundError:
            continue
        except Exception as error:
            found = (checkpoint.name, checkpoint.revision, checkpoint.table)
            raise _not_found(error, *found) from error
    # Without the newer of the two, which few have, the other speaks for itself.
    if PROCESSOR_FILES[-1] in unknown:
        raise checkpoint.error(
            f"what its pixels go through is not known: {PROCESSOR_FILES[-1]} is not in the cache",
            key="normalisation",
            hint=f"{fetch_command(checkpoint.name, checkpoint.revision)}; or set normalisation, "
            f"resampling and resize of [{checkpoint.table}] in the matrix file",
        )


def _not_found(error: Exception, name: str, revision: str | None, table: str) -> InputError:
    fetch, key = fetch_command(name, revision), f"{table}.checkpoint"
    if isinstance(error, RevisionNotFoundError):
        return InputError(
            f"the repository has no revision {revision!r}",
            where=name,
            key=f"{table}.revision",
            hint="expected a branch, a tag or a commit of 40 digits",
        )
    if isinstance(error, LocalEntryNotFoundError):  # no network, or it is not to be used
        cached = _cached_revisions(name)
        if revision is not None and cached:
            problem = f"the revision {revision!r} is not in the cache, which has {quoted(cached)}"
            return InputError(problem, where=name, key=f"{table}.revision", hint=fetch)
    elif isinstance(error, EntryNotFoundError):
        hint = "expected a ViT that save_pretrained wrote"
        return InputError(f"the repository has no {CONFIG}", where=name, key=key, hint=hint)
    problem = f"cannot load the checkpoint: {type(error).__name__}: {first_line(error)}"
    return InputError(problem, where=name, key=key, hint=fetch)


def _cached_revisions(name: str) -> list[str]:
    """Branches, tags and bare commits of a repository in the hub's cache."""
    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return []
    return sorted(
        revision
        for repository in cache.repos
        if (repository.repo_type, repository.repo_id) == ("model", name)
        for commit in repository.revisions
        for revision in commit.refs or {commit.commit_hash}
    )
