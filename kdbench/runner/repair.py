"""Checks and repairs a folder of results: `kdbench doctor RESULTS`."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kdbench.common.errors import printable
from kdbench.runner.recovery import recover
from kdbench.store import Store, find_stores
from kdbench.store.inspection import Health, inspect_store

# All files are counted, but only the first ones are listed.
_MAX_LISTED = 20
_LEFTOVER = "left behind by a run that was killed, or found no room; the next one takes it up"


def examine_results(path: Path) -> list[Health]:
    """Inspect each store in a folder; raises InputError where there is none."""
    return [inspect_store(root) for root in find_stores(path)]


def repair_store(health: Health, tell: Callable[[str], None]) -> None:
    """Repair a store and delete nothing that was measured; `tell` receives a line per change.

    Files that are not its parts, including those of a newer kdbench, move to `.set-aside`; what a
    killed run left behind becomes rows. Raises InputError if a run is writing there.
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
    """Yield what to do about a store, one line per kind of problem."""
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
    """Yield the state of a store, one line per item."""
    older = ", ".join(f"{count} of schema {v}" for v, count in sorted(health.older.items()))
    migrated = f" ({older}, migrated as they are read)" if older else ""
    writing = "; a run is going on" if health.writing else ""
    yield f"{health.root}: {_count(health.runs, 'whole run')}{migrated}{writing}"
    yield from _first([f"  {damage}" for damage in health.damage], "damaged or foreign file")
    incomplete = [
        f"  {printable(health.labels[key])} ({key}) has no part in {', '.join(tables)}: the "
        "command that it came from measures it again"
        for key, tables in health.missing_tables.items()
    ]
    yield from _first(incomplete, "run with a table's part gone")
    yield from _first([f"  {path}: {_LEFTOVER}" for path in health.leftovers], "left-over file")


def _first(lines: Sequence[str], what: str) -> list[str]:
    more = len(lines) - _MAX_LISTED
    return [*lines[:_MAX_LISTED], *([f"  ... and {_count(more, what)} more"] if more > 0 else [])]


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" + ("" if count == 1 else "s")
