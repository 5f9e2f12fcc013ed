"""Where a step's memory is at its peak, by category and module: the ledger of each cell."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.results import Results

# What stays for the whole step first, so that in a stack over time the rest moves above it.
STACK = (
    *("parameters", "optimizer_state", "teacher", "inputs"),
    *("gradients", "activations", "workspace", "other"),
)
NO_MODULE = "(outside any module)"
# Layers of one kind are named as one: blocks.0.mlp and blocks.1.mlp are blocks.*.mlp.
_LAYER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True)
class Part:
    """Bytes at the peak that have something in common."""

    name: str
    size: int
    #: how many storages
    blocks: int


@dataclass(frozen=True, eq=False)
class Breakdown:
    """The peak of one cell's steady step: the accounting step, or a predicted one."""

    group: CellGroup  #: the cell
    run_key: str  #: the run that it is of: the first one that finished and has a ledger
    categories: Sequence[Part]  #: those that hold something, in the order of `STACK`
    modules: Sequence[Part]  #: by dotted name, largest first
    #: what a second source counts beyond the ledger; None where there is none
    unattributed: int | None
    #: of it, what operations take within themselves; None where that is not reported
    scratch: int | None

    @property
    def attributed(self) -> int:
        """The ledger's peak in bytes: what the categories come to, and the modules."""
        return sum(part.size for part in self.categories)


def breakdowns(results: Results, groups: Iterable[CellGroup]) -> list[Breakdown]:
    """Break the peaks of cells down; cells without a ledger's rows are left out."""
    steady = results.memory[results.memory["stage"] == "steady"]
    keyed = steady.groupby(["matrix", "run_key"])
    rows = {(str(matrix), str(run_key)): frame for (matrix, run_key), frame in keyed}
    runs = {(row["matrix"], row["run_key"]): row for row in results.records()}
    found = []
    for group in groups:
        run_key = first_run(group, {key for matrix, key in rows if matrix == group.matrix})
        if run_key is None:
            continue
        own, run = rows[group.matrix, run_key], runs[group.matrix, run_key]
        categories = {part.name: part for part in _parts(own, "category")}
        found.append(
            Breakdown(
                group=group,
                run_key=run_key,
                categories=[categories[name] for name in STACK if name in categories],
                modules=_parts(own, "module"),
                unattributed=run["unattributed_bytes"],
                scratch=run["unattributed_scratch_bytes"],
            )
        )
    return found


def folded_name(module: str) -> str:
    """Name a module together with the layers of its kind: `blocks.*.mlp`."""
    return _LAYER.sub("*", module)


def folded(modules: Sequence[Part]) -> list[tuple[Part, int]]:
    """Put modules that are layers of one kind together, the largest first, each with its count."""
    kinds: dict[str, list[Part]] = {}
    for part in modules:
        kinds.setdefault(folded_name(part.name), []).append(part)
    found = []
    for name, own in kinds.items():
        size, blocks = sum(part.size for part in own), sum(part.blocks for part in own)
        found.append((Part(name if len(own) > 1 else own[0].name, size, blocks), len(own)))
    return sorted(found, key=lambda kind: (-kind[0].size, kind[0].name))


def first_run(group: CellGroup, among: set[str]) -> str | None:
    """Find the first run of a cell that finished and is among some; None where none is."""
    keys = (run.run_key for run in group.members if run.status == "ok")
    return next((key for key in keys if key in among), None)


def missing_note(groups: Sequence[CellGroup], found: Sequence[Breakdown]) -> list[str]:
    """Name the finished cells without a ledger's rows, and say why."""
    covered = {id(item.group) for item in found}
    left = [group for group in groups if group.finished and id(group) not in covered]
    reasons = ((True, "no ledger sees into a compiled student"), (False, "no rows of memory"))
    return [
        f"{reason}: {', '.join(names)}"
        for compiled, reason in reasons
        if (names := [group.name for group in left if bool(group.settings["compile"]) is compiled])
    ]


def _parts(rows: pd.DataFrame, column: str) -> list[Part]:
    names = rows[column].fillna(NO_MODULE).replace("", NO_MODULE)
    totals = rows.groupby(names)[["bytes", "blocks"]].sum()
    parts = [Part(str(name), int(size), int(n)) for name, size, n in totals.itertuples()]
    return sorted(parts, key=lambda part: (-part.size, part.name))
