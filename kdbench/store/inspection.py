"""What is not as it should be in a matrix's results, found without changing anything."""

import fcntl
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from kdbench.store.layout import EMPTY_PART, LOCK, SPOOL, part_files, unfinished_files
from kdbench.store.migrate import tables_in_version
from kdbench.store.parts import Damage, DamagedPartError, read_versioned
from kdbench.store.schema import SCHEMA_VERSION, TABLES


@dataclass(frozen=True)
class Health:
    """How a matrix's results are."""

    root: Path  #: their folder
    runs: int  #: whole, readable runs
    #: how many of them have which older schema version; they are migrated on read
    older: dict[int, int]
    damage: tuple[Damage, ...]  #: files in the tables' folders that are none of their parts
    #: committed runs of which another table's part is gone, with those tables; none while a run is
    #: going on, which may just be setting them aside
    missing_tables: dict[str, tuple[str, ...]]
    labels: dict[str, str]  #: of those runs
    #: what runs left behind that were killed: spools, temporary files, rows without a commit. The
    #: next run deals with them
    leftovers: tuple[Path, ...]
    writing: bool  #: a run is going on here, whose leftovers are none

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
    sound: dict[str, set[str]] = {}
    # `cells` last: a run that is committed meanwhile has its other parts then, but not before
    for table in sorted(TABLES, key=lambda name: name == "cells"):
        sound[table] = set()
        for part in part_files(root, table):
            try:
                found = read_versioned(part, table)
            except DamagedPartError as error:
                damage.append(error.damage)
                continue
            if found is not None and part.name != EMPTY_PART:
                sound[table].add(part.stem)
                if table == "cells":
                    rows, versions[part.stem] = found
                    labels[part.stem] = rows.column("label")[0].as_py() or "no label"
        damage += _strangers(root / table, table)
    damaged = {(found.table, found.part.stem) for found in damage}
    lacking = {
        key: gone
        for key, version in sorted(versions.items())
        if not writing
        if (
            gone := tuple(
                table
                for table in tables_in_version(version)
                if key not in sound[table] and (table, key) not in damaged
            )
        )
    }
    return Health(
        root=root,
        runs=len(versions.keys() - lacking.keys() - {key for _, key in damaged}),
        older=dict(Counter(v for v in versions.values() if v != SCHEMA_VERSION)),
        damage=tuple(damage),
        missing_tables=lacking,
        labels={key: labels[key] for key in lacking},
        leftovers=() if writing else tuple(_leftovers(root, sound)),
        writing=writing,
    )


def _strangers(folder: Path, table: str) -> Iterator[Damage]:
    """Find what lies among the parts and is none by its name."""
    for path in sorted(folder.glob("*")):
        if not path.name.startswith(".") and path.suffix != ".parquet":
            yield Damage(path, table, "foreign: expected parquet files alone here")


def _leftovers(root: Path, sound: dict[str, set[str]]) -> Iterator[Path]:
    yield from sorted(path for path in (root / SPOOL).glob("*"))
    for table in TABLES:
        yield from unfinished_files(root, table)
        committed = sound["cells"] | {part.stem for part in part_files(root, "cells")}
        yield from (root / table / f"{key}.parquet" for key in sorted(sound[table] - committed))


def _is_locked(path: Path) -> bool:
    """Whether a run holds the lock; a lock that cannot be asked for tells of none."""
    try:
        # a pipe in its place would be waited for
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
