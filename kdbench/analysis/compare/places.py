"""What the figures of two sides were taken on, which of these belong together, how they differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.environments import Environment, list_environments
from kdbench.common.errors import InputError, printable, quoted

_WORDS = {
    "device": "device",
    "threads": "threads",
    "cpu_model": "processor",
    "gpu_name": "card",
    "driver_version": "driver",
    "torch_version": "torch",
    "runtime_settings": "runtime settings",
}


@dataclass(frozen=True)
class Change:
    """Something that is not the same on both sides."""

    name: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.name} {self.before} → {self.after}"


@dataclass(frozen=True)
class Place:
    """What decides figures beside the cell: a machine, or of a prediction its device profile."""

    source: str  #: measured, or predicted
    profile: str | None  #: of a prediction; None of a measurement
    #: of a measurement; None of a prediction, which any machine comes to
    environment: Environment | None
    torch_version: str | None  #: decides both

    @classmethod
    def of(cls, group: CellGroup) -> Place:
        """Read it from a cell's runs."""
        environment, source = group.environment, str(group.settings["source"])
        if source == "measured":
            return cls(source, None, environment, environment.torch_version)
        return cls(source, group.settings["profile"], None, environment.torch_version)

    @property
    def title(self) -> str:
        """How the figures were got, and on what, in words that are safe to print."""
        if self.environment is not None:
            return f"measured on {self.environment.description} [{self.environment.id}]"
        profile = printable(self.profile or "no known profile")
        torch = printable(self.torch_version or "unknown")
        return f"{printable(self.source)} for {profile}, torch {torch}"


def pair_places(
    before: Sequence[Place], after: Sequence[Place], *, matrix: str
) -> list[tuple[Place, Place]]:
    """Pair the places of two sides; raises InputError if a side has several and it is unclear.

    Places that both sides have go together. Where none of the measured ones is on both sides, and
    each side has one, these do, and in the same way the predicted ones. A prediction is compared
    with a measurement only if nothing else can be.
    """
    pairs = [(place, place) for place in before if place in after]
    sources = {place.source for place in before} & {place.source for place in after}
    for source in sorted(sources - {place.source for place, _ in pairs}):
        one, other = ([p for p in side if p.source == source] for side in (before, after))
        pairs.append((_single(one, "before", matrix), _single(other, "after", matrix)))
    if not pairs and before and after:
        pairs.append((_single(before, "before", matrix), _single(after, "after", matrix)))
    return pairs


def changed_places(before: Place, after: Place) -> tuple[Change, ...]:
    """List what differs between two places.

    Between a prediction and a measurement that is torch alone: the one has no machine.
    """
    if before.environment is not None and after.environment is not None:
        return changes(vars(before.environment), vars(after.environment), _WORDS)
    names = {"profile": "profile", "torch_version": "torch"}
    if before.source != after.source:
        del names["profile"]
    return changes(vars(before), vars(after), names)


def changed_packages(
    before: Iterable[Mapping[str, Any]], after: Iterable[Mapping[str, Any]]
) -> tuple[Change, ...]:
    """List what else differs between rows of `cells`: packages, Python, kdbench's own revision."""
    first, second = _packages(before), _packages(after)
    # what one side does not record need not be another
    return changes(first, second, {name: name for name in first if name in second})


def changes(
    before: Mapping[str, Any], after: Mapping[str, Any], names: Mapping[str, str]
) -> tuple[Change, ...]:
    """List the keys whose values differ, by the names that they are to have."""
    return tuple(
        Change(name, _written(before.get(key)), _written(after.get(key)))
        for key, name in names.items()
        if before.get(key) != after.get(key)
    )


def _single(places: Sequence[Place], side: str, matrix: str) -> Place:
    if len(places) == 1:
        return places[0]
    if machines := [place.environment for place in places if place.environment is not None]:
        what, where = "environments", "--environment"
        hint = f"pick one: {list_environments(machines)}"
    else:
        what, where = "predictions", f"--{side}"
        named = quoted(f"{place.profile}, torch {place.torch_version}" for place in places)
        hint = f"pick one by profile=NAME or torch_version=VERSION: {named}"
    raise InputError(
        f"the side {side} has several {what} of {matrix!r}, the other none of them",
        where=where,
        hint=hint,
    )


def _packages(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Versions by name; several where runs differ. torch is said elsewhere."""
    found: dict[str, set[str]] = {}
    for row in rows:
        known = _environment_of(row)
        packages = known.get("packages")
        versions = dict(packages) if isinstance(packages, dict) else {}
        for name in ("torch", "kdbench"):
            versions.pop(name, None)
        for key, name in (("torch_cuda", "CUDA of torch"), ("python_version", "Python")):
            if key in known:
                versions[name] = known[key]
        if row["git_revision"] is not None:
            versions["kdbench"] = row["git_revision"]
        for name, version in versions.items():
            found.setdefault(str(name), set()).add(_written(version))
    return {name: ", ".join(sorted(versions)) for name, versions in found.items()}


def _environment_of(row: Mapping[str, Any]) -> dict[str, Any]:
    try:
        known = json.loads(row["environment"] or "{}")
    except (ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _written(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(f"{value:g}" if isinstance(value, float) else value)
