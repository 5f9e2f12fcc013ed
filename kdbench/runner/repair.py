"""What `kdbench doctor RESULTS` says of results, and how they are put in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kdbench.common.errors import printable
from kdbench.runner.recovery import recover
from kdbench.store import Store, find_stores
from kdbench.store.inspection import Health, inspect_store

# Of a folder full of rubbish the first files tell enough; all are counted.
_SHOWN = 20
_LEFT = "left behind by a run that was killed, or found no room; the next one takes it up"


def examine_results(path: Path) -> list[Health]:
    """Look at each store in a folder.

    Raises:
        InputError: there is none.
    """
    return [inspect_store(root) for root in find_stores(path)]


def repair_store(health: Health, tell: Callable[[str], None]) -> None:
    """Put a store in order: nothing is deleted that was measured.

    Files that are none of its parts are moved to `.set-aside`, also what a newer kdbench wrote;
    what a killed run left behind becomes rows.

    Args:
        health: as `inspect` found it.
        tell: is told, in a line, what was done.

    Raises:
        InputError: a run is going on there, or it cannot be written to.
    """
    store = Store(health.root)
    store.prepare()
    with store.writing():
        recover(store, tell)
        for damage in health.damage:
            if damage.part.exists() or damage.part.is_symlink():
                tell(f"moved {damage.part} to {store.set_aside(damage.part)}")
        store.tidy()


def remedies(health: Health, path: Path) -> Iterator[str]:
    """Say what to do about a store, a line for each kind of thing."""
    if any(damage.newer for damage in health.damage):
        yield "update kdbench to read what a newer one wrote"
    if health.damage:
        yield f"kdbench doctor {path} --repair moves these files away, and keeps them"
    if health.missing_tables:
        yield "kdbench run, as it was called for these results, measures again what they lack"
    if health.leftovers:
        yield (
            "kdbench run, as it was called for these results, goes on from what was left behind; "
            f"kdbench doctor {path} --repair makes rows of it"
        )


def describe(health: Health) -> Iterator[str]:
    """Say how a store is, a line for each thing."""
    older = ", ".join(f"{count} of schema {v}" for v, count in sorted(health.older.items()))
    going_on = "; a run is going on" if health.writing else ""
    yield (
        f"{health.root}: {_count(health.runs, 'whole run')}"
        + (f" ({older}, migrated as they are read)" if older else "")
        + going_on
    )
    yield from _few([f"  {damage}" for damage in health.damage], "damaged or foreign file")
    yield from _few(
        [
            f"  {printable(health.labels[key])} ({key}) has no part in {', '.join(tables)}: the "
            "command that it came from measures it again"
            for key, tables in health.missing_tables.items()
        ],
        "run with a table's part gone",
    )
    yield from _few(
        [f"  {path}: {_LEFT}" for path in health.leftovers],
        "left-over file",
    )


def _few(told: Sequence[str], of_what: str) -> list[str]:
    more = len(told) - _SHOWN
    return [*told[:_SHOWN], *([f"  ... and {_count(more, of_what)} more"] if more > 0 else [])]


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
