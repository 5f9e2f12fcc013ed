"""What is wrong with a matrix's results, found without changing anything."""

import fcntl
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdbench.store.layout import EMPTY_PART, LOCK, SPOOL, part_files, part_name, unfinished_files
from kdbench.store.migrate import tables_in_version
from kdbench.store.parts import Damage, DamagedPartError, read_versioned
from kdbench.store.schema import SCHEMA_VERSION, TABLES


@dataclass(frozen=True)
class Health:
    """The state of a matrix's results."""

    root: Path  #: their folder
    runs: int  #: whole, readable runs
    older: dict[int, int]  #: how many of them have an older schema version, by version
    damage: tuple[Damage, ...]  #: files in the tables' folders that are no parts of theirs
    #: the tables whose part is gone, by committed run; none while a run is going on, which may be
    #: setting them aside
    missing_tables: dict[str, tuple[str, ...]]
    labels: dict[str, str]  #: of those runs
    #: spools, temporary files and rows without a commit of runs that were killed; the next run
    #: deals with them
    leftovers: tuple[Path, ...]
    writing: bool  #: a run is going on here, so nothing of it counts as left over

    @property
    def good(self) -> bool:
        """Whether there is nothing to repair."""
        return not (self.damage or self.missing_tables or (self.leftovers and not self.writing))


def inspect_store(root: Path) -> Health:
    """Read every part of a store, whole, and look for what is missing or left over."""
    writing = _is_locked(root / LOCK)
    damage: list[Damage] = []
    versions: dict[str, int] = {}
    labels: dict[str, str] = {}
    readable: dict[str, set[str]] = {}
    # `cells` last: a run that is committed meanwhile has its other parts then, but not before
    for table in sorted(TABLES, key=lambda name: name == "cells"):
        readable[table] = set()
        for part in part_files(root, table):
            try:
                found = read_versioned(part, table)
            except DamagedPartError as error:
                damage.append(error.damage)
                continue
            if found is not None and part.name != EMPTY_PART:
                readable[table].add(part.stem)
                if table == "cells":
                    rows, versions[part.stem] = found
                    labels[part.stem] = rows.column("label")[0].as_py() or "no label"
        damage += [
            Damage(path, table, "foreign: expected parquet files alone here")
            for path in sorted((root / table).glob("*"))
            if not path.name.startswith(".") and path.suffix != ".parquet"
        ]
    damaged = {(found.table, found.part.stem) for found in damage}
    missing: dict[str, tuple[str, ...]] = {}
    for key, version in sorted(versions.items()):
        gone = tuple(
            table
            for table in tables_in_version(version)
            if key not in readable[table] and (table, key) not in damaged
        )
        if gone and not writing:
            missing[key] = gone
    return Health(
        root=root,
        runs=len(versions.keys() - missing.keys() - {key for _, key in damaged}),
        older=dict(Counter(v for v in versions.values() if v != SCHEMA_VERSION)),
        damage=tuple(damage),
        missing_tables=missing,
        labels={key: labels[key] for key in missing},
        leftovers=() if writing else tuple(_leftovers(root, readable)),
        writing=writing,
    )


def _leftovers(root: Path, readable: dict[str, set[str]]) -> Iterator[Path]:
    yield from sorted((root / SPOOL).glob("*"))
    committed = readable["cells"] | {part.stem for part in part_files(root, "cells")}
    for table in TABLES:
        yield from unfinished_files(root, table)
        yield from (root / table / part_name(key) for key in sorted(readable[table] - committed))


def _is_locked(path: Path) -> bool:
    """Whether a run holds the lock; one that cannot be opened counts as free."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        # without O_NONBLOCK, a pipe in its place would be waited for
        descriptor = os.open(path, flags | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
