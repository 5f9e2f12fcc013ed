"""What a column is, and the notation that the tables' columns are written in."""

import re
from dataclasses import dataclass
from typing import Literal

Dtype = Literal["string", "int64", "float64", "bool", "timestamp"]


@dataclass(frozen=True)
class Column:
    """One column; `null_when` None: never, `since`: the first schema version that has it."""

    name: str
    doc: str
    null_when: str | None
    dtype: Dtype
    since: int


_DTYPES: dict[str, Dtype] = {
    "text": "string",
    "integer": "int64",
    "number": "float64",
    "flag": "bool",
    "timestamp": "timestamp",
}
_ENTRY = re.compile(r"(\w+) (\w+)(?: since (\d+))?: (.+?)(?: \[null: (.+)\])?")

_NVML = "no NVML, or the driver does not tell it"
# What several columns say of their nulls, by the name that stands in braces there.
_REASONS = {
    "no_step": "no step finished",
    "no_time": "no step finished, or all that did were suspended",
    "all_near": "; all timed steps were within a second of a suspension",
    "no_gpu": "not on a CUDA device",
    "no_nvml": _NVML,
    "per_card": _NVML + "; a MIG instance, for which it is not reported",
    "no_sensor": "the system does not tell it",
    "not_read": "; not read this often",
    "not_caught": "; the timed steps were too short to meet a reading, one a second",
    "not_counted": "no accounting step finished; compiled",
    "not_trained": "mode is profile",
    "no_precompute": "the method precomputes nothing",
    "no_pixels": (
        "the method has no teacher; setup did not finish; predicted, and the checkpoint is on the "
        "hub"
    ),
    "untimed": "an accounting step",
    "measured": "source is not predicted",
    "not_oom": "status is not oom",
    "not_told": "; whoever refused did not tell",
}


def read_columns(entries: str) -> tuple[Column, ...]:
    """Read columns: an entry for each, whose further lines are indented.

    An entry is `KIND NAME: MEANING`, with ` since VERSION` after the name unless it was always
    there, and ` [null: WHEN]` at the end if it can be null.
    """
    found = []
    for entry in re.sub(r"\n +", " ", entries.strip().format(**_REASONS)).splitlines():
        if (match := _ENTRY.fullmatch(entry)) is None:
            raise ValueError(f"expected `KIND NAME: MEANING`, found {entry!r}")
        kind, name, since, doc, null_when = match.groups()
        found.append(Column(name, doc, null_when, _DTYPES[kind], int(since or 1)))
    return tuple(found)
