"""The figures of some cells, and where they come from: what a gate compares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from kdbench.matrix.filter import RowFilter
from kdbench.spec.gated_metrics import Source
from kdbench.store.schema import PLAN_COLUMNS

# Of a run and not of its cell, or said once for all cells.
_NOT_SETTINGS = ("label", "matrix", "seed", "repeat", "device", "source", "profile")
SETTINGS = tuple(c.name for c in PLAN_COLUMNS if c.name not in _NOT_SETTINGS)

#: category and dotted module name (None: outside any module) to bytes by stage
Memory = Mapping[tuple[str, str | None], Mapping[str, int]]


@dataclass(frozen=True, kw_only=True)
class About:
    """What all figures of a snapshot have in common; what is not known is None.

    A prediction has a profile and no machine, a measurement the reverse.
    """

    matrix: str
    source: Source
    schema_version: int
    torch_version: str | None
    profile: str | None = None
    profile_digest: str | None = None  #: of the profile's content
    device: str | None = None
    threads: int | None = None
    cpu_model: str | None = None
    gpu_name: str | None = None
    driver_version: str | None = None
    runtime_settings: str | None = None

    @property
    def title(self) -> str:
        """How the figures were got, in words."""
        if self.source == "predicted":
            return f"predicted for {self.profile}"
        return f"measured on {self.gpu_name or self.cpu_model or 'an unknown processor'}"


#: What two measurements have in common when their times can be compared.
MACHINE = (
    *("device", "threads", "cpu_model", "gpu_name", "driver_version", "torch_version"),
    "runtime_settings",
)


@dataclass(frozen=True)
class Entry:
    """One cell."""

    settings: Mapping[str, str | None]  #: its columns of the plan as text, missing ones None
    #: by metric: one value if it is exact or advisory; of a time one per process, in the order of
    #: seeds and repeats, and under `LOAD` what others used of the machine during each
    metrics: Mapping[str, tuple[float, ...]]
    memory: Memory = field(default_factory=dict)  #: bytes at its peaks


@dataclass(frozen=True)
class Snapshot:
    """The figures of some cells by label."""

    about: About
    entries: Mapping[str, Entry]

    def matching(self, conditions: Iterable[RowFilter], *, among: Iterable[str] = ()) -> Snapshot:
        """Keep the cells that `--only` asks for, and those among some labels in any case.

        A condition on what no cell has, such as a seed, drops none.
        """
        known = [only for only in conditions if only.column in (*SETTINGS, "label")]
        kept = set(among)

        def wanted(label: str, entry: Entry) -> bool:
            values = {**entry.settings, "label": label}
            return all((values.get(o.column) or "null") in o.wanted for o in known)

        entries = {k: e for k, e in self.entries.items() if k in kept or wanted(k, e)}
        return replace(self, entries=entries)


@dataclass(frozen=True)
class Observed:
    """A new snapshot, with its failures and notes."""

    snapshot: Snapshot  #: the cells that have figures
    #: label of each cell that failed, to how
    failures: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()  #: what a reader should know, in sentences

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Every label, of failed cells too."""
        return tuple(dict.fromkeys([*self.snapshot.entries, *self.failures]))


def as_text(value: object) -> str | None:
    """Write a setting as `--only` and baselines have it: `true`, `32`; None stays None."""
    if value is None:
        return None
    return str(value).lower() if isinstance(value, bool) else str(value)
