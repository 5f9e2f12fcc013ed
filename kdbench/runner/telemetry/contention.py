"""Whether others used what the worker needed, judged from the samples; pure functions.

The question is not whether the machine was idle, but whether a step may have taken longer. Others
on the processors matter as far as they leave the worker fewer cores than it has threads; others on
the card matter if they compute there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.runner.telemetry.windows import Sample, Window, mean_rate, padded, within

# Beyond the cores that the worker leaves over. Where it uses all of them, a step waits for its
# slowest thread: what others take of one core, a tenth here, the whole step may take longer, and
# that is about what two processes of one cell differ by anyway. An idle desktop stays well below.
_TOLERATED_PROCESSORS = 0.1
# The process list is read once a second: what is on the card just before or after a short window
# was there within it too.
LIST_NS = 1_000_000_000


@dataclass(frozen=True)
class Contention:
    """What is known of others during the timed steps."""

    contended: bool | None  #: None where neither processors nor card could be observed
    words: str | None  #: who or what it was; None where nothing contended
    #: processors that others kept busy, on average; None where not observed
    cpu_elsewhere: float | None


def judge_contention(
    samples: Sequence[Sample], windows: Sequence[Window], *, threads: int | None
) -> Contention:
    """Judge the windows of the timed steps.

    `threads` is how many processors the worker's own work keeps busy at once; None: not known.
    """
    elsewhere = mean_rate(samples, "cpu_elsewhere", windows)
    facts = samples[0] if samples else {}
    verdicts = (_processors(elsewhere, facts, threads), _card(samples, windows))
    known = [verdict for verdict in verdicts if verdict is not None]
    words = "; ".join(word for word in known if word) or None
    return Contention(words is not None if known else None, words, elsewhere)


def _processors(
    elsewhere: float | None, facts: Mapping[str, Any], threads: int | None
) -> str | None:
    """Say what others used of the processors (`cpu_load`); empty: not too much, None: unknown."""
    usable = facts.get("usable_processors")
    if elsewhere is None or usable is None or threads is None:
        return None
    # Two hardware threads share a core: a second one there slows the first.
    cores = facts.get("usable_cores") or usable
    left_over = max(0, cores - threads)
    if elsewhere <= left_over + _TOLERATED_PROCESSORS:
        return ""
    left = f"the worker left {left_over} of {cores} cores free"
    return f"others kept {elsewhere:.2g} of {usable} processors busy, {left}"


def _card(samples: Sequence[Sample], windows: Sequence[Window]) -> str | None:
    """Say who else computed on the card; empty for nobody, None for unknown.

    Where the driver reports who computes, an open but idle notebook is no contention; where it does
    not, whoever has the card open may compute.
    """
    around = padded(windows, LIST_NS)
    counts = within(samples, "gpu_neighbours", around)
    if not counts:
        return None
    readings = _listed(samples, around)
    seen = [tuple(other) for others in readings for other in others]
    names = {pid: name for pid, name, _ in seen if name}
    idle = {pid for pid, _, computing in seen if computing is False}
    idle -= {pid for pid, _, computing in seen if computing}
    company = [
        f"{names[pid]} ({pid})" if pid in names else f"process {pid}"
        for pid in sorted({pid for pid, _, _ in seen} - idle)
    ]
    unnamed = max(n - len(others) for n, others in zip(counts, readings, strict=True))
    if unnamed:
        company.append(f"{unnamed} of those that came after the worker")
    return f"also on the card: {', '.join(company)}" if company else ""


def _listed(samples: Sequence[Sample], windows: Sequence[Window]) -> list[Any]:
    """Return the neighbours of each reading of the list within the windows."""
    readings = [
        {"monotonic_ns": s["monotonic_ns"], "others": s.get("neighbours") or []}
        for s in samples
        if s.get("gpu_neighbours") is not None
    ]
    return within(readings, "others", windows)
