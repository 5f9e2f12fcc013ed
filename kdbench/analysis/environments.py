"""The environment that a row was measured in. Rows of two are never put into one number."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from kdbench.common.errors import InputError, did_you_mean, printable, truncate
from kdbench.spec.cell import digest

# in a name that is to be read; all of them are in the results
_LONGEST_SETTINGS = 120


@dataclass(frozen=True)
class Environment:
    """What decides a measurement's value besides the cell itself.

    `gpu_name` and `driver_version` are None off CUDA: a card that is not used decides nothing.
    """

    device: str
    threads: int | None
    cpu_model: str | None
    gpu_name: str | None
    driver_version: str | None
    torch_version: str | None
    #: the device profile, where nothing was measured; None: it was
    profile: str | None = None
    #: what of the environment decides figures, as NAME=value pairs; None: nothing is set
    runtime_settings: str | None = None

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Environment:
        """Read it from a row of `cells`, missing values being None."""
        on_gpu = str(row["device"]).startswith("cuda")
        return cls(
            device=row["device"],
            threads=row["threads"],
            cpu_model=row["cpu_model"],
            gpu_name=row["gpu_name"] if on_gpu else None,
            driver_version=row["driver_version"] if on_gpu else None,
            torch_version=row["torch_version"],
            profile=row["profile"],
            runtime_settings=row.get("runtime_settings"),
        )

    @property
    def id(self) -> str:
        """Short hash of all of it (8 hex digits)."""
        known = dict(vars(self))
        if self.runtime_settings is None:  # the name that it had before there were any
            del known["runtime_settings"]
        return digest(known)[:8]

    @property
    def on_gpu(self) -> bool:
        """Whether the steps ran on a CUDA device."""
        return self.device.startswith("cuda")

    @property
    def name(self) -> str:
        """Short name to read and to pick by; two environments may share one, but never an id."""
        if self.profile is not None:
            return printable(f"predicted for {self.profile}: torch {self.torch_version}")
        parts = [_short(self.gpu_name if self.on_gpu else self.cpu_model)]
        if self.on_gpu:
            parts.append(f"driver {self.driver_version or 'unknown'}")
        parts.append(_threads(self.threads))
        parts.append(f"torch {self.torch_version or 'unknown'}")
        if self.runtime_settings is not None:
            parts.append(f"with {truncate(self.runtime_settings, _LONGEST_SETTINGS)}")
        return printable(f"{self.device}: " + ", ".join(parts))

    @property
    def description(self) -> str:
        """The name, with the host's processor where the steps ran on a GPU."""
        measured = self.profile is None
        host = f"; host {_short(self.cpu_model)}" if self.on_gpu and measured else ""
        return self.name + printable(host)


def assign_environments(rows: Sequence[Mapping[str, Any]]) -> list[Environment]:
    """Give each row of `cells` its environment.

    A worker that never started has reported no thread count. Such a row joins the one environment
    that agrees with it in all else, so that a failure is listed with the cells it belongs to.
    """
    own = [Environment.of(row) for row in rows]
    alike: dict[Environment, set[Environment]] = {}
    for environment in own:
        if environment.threads is not None:
            alike.setdefault(replace(environment, threads=None), set()).add(environment)
    joined = {one: others.pop() for one, others in alike.items() if len(others) == 1}
    return [e if e.profile is not None else joined.get(e, e) for e in own]


def pick_environment(wanted: str, environments: Sequence[Environment]) -> Environment:
    """Find the one environment with this id, name, or unique part of its name."""
    lowered = wanted.strip().lower()
    for exact in ("id", "name"):
        found = [e for e in environments if getattr(e, exact).lower() == lowered]
        if len(found) == 1:
            return found[0]
    found = [e for e in environments if lowered and lowered in e.name.lower()]
    if len(found) == 1:
        return found[0]
    problem = "several match" if found else "no results of it"
    near = did_you_mean(wanted, [e.id for e in environments] + [e.name for e in environments])
    listed = f"there are {list_environments(found or environments)}"
    raise InputError(
        f"{problem}: {wanted!r}",
        where="--environment",
        hint=listed if found or near is None else f"{near} {listed}",
    )


def list_environments(environments: Iterable[Environment]) -> str:
    """Name environments for a message, each with its id."""
    return " | ".join(f"{e.id} ({e.name})" for e in environments)


def _threads(count: int | None) -> str:
    if count is None:
        return "unknown threads"
    return f"{count} thread" if count == 1 else f"{count} threads"


def _short(model: str | None) -> str:
    """Leave the trademarks and the nominal clock out of a processor's name."""
    if model is None:
        return "unknown processor"
    bare = re.sub(r"\((?:R|TM|C)\)|\bCPU\b|\bProcessor\b|@.*$", " ", model, flags=re.IGNORECASE)
    return " ".join(bare.split()) or model
