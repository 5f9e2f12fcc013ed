"""Which cell the others are set against, and when a method has paid for its precompute."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.estimates import Estimate, agree
from kdbench.analysis.paper_figures import is_reported
from kdbench.common.errors import InputError, did_you_mean, quoted
from kdbench.common.units import format_count


def find_reference(groups: Sequence[CellGroup], wanted: str | None) -> CellGroup | None:
    """Find the cell of one matrix and environment that ratios are taken to; None if there is none.

    By default the first Teacher-KD cell that finished, preferably one that the paper has; else the
    first cell that finished.
    """
    if wanted is not None:
        named = [g for g in groups if g.name == wanted] or [g for g in groups if g.label == wanted]
        return named[0] if named else None
    finished = [group for group in groups if group.finished]
    teachers = [group for group in finished if group.method == "teacher-kd"]
    paper = [group for group in teachers if is_reported(group.settings)]
    return next(iter([*paper, *teachers, *finished]), None)


def check_reference(groups: Sequence[CellGroup], wanted: str | None) -> None:
    """Raise InputError if no cell has the wanted label, or cells of changed settings share it."""
    named = [group for group in groups if group.name == wanted]
    if wanted is None or any(group.finished for group in named):
        return
    if named:
        problem = f"the cell {wanted!r} has no figures: it {named[0].problems[0][0]}"
        hint = "name one that finished, or run it again with kdbench run --retry"
    elif sharing := dict.fromkeys(group.name for group in groups if group.label == wanted):
        problem, hint = f"several cells have the label {wanted!r}", f"name one: {quoted(sharing)}"
    else:
        names = list(dict.fromkeys(group.name for group in groups))
        problem = f"no cell has the label {wanted!r}"
        hint = did_you_mean(wanted, names) or f"there are {quoted(names[:20])}"
    raise InputError(problem, where="--reference", hint=hint)


@dataclass(frozen=True)
class Payback:
    """When a method's precompute has paid for itself."""

    rival: CellGroup  #: the cell it is compared with, which runs the teacher on every batch
    #: optimizer steps until then, by the medians; infinity where no step saves anything
    steps: float
    #: the fewest and the most steps that the runs, or the medians' intervals, allow for
    ends: tuple[float, float]
    per_epoch: int | None  #: optimizer steps in an epoch; None where they are not known
    extrapolated: bool  #: a time behind it was worked out from fewer steps or batches
    contended: bool  #: every run behind one of its times was, so that it means nothing

    @property
    def epochs(self) -> float | None:
        """The steps in epochs; None where the steps of an epoch are not known."""
        return self.steps / self.per_epoch if self.per_epoch else None

    @property
    def is_one_number(self) -> bool:
        """Whether the runs agree about it: both ends are finite and near, or both are not."""
        return not self.contended and (self.ends[0] == self.ends[1] or agree(self.ends))

    @property
    def is_range(self) -> bool:
        """Whether the runs give no more than from when to when, both of them finite."""
        known = math.isfinite(self.ends[1]) and not self.contended
        return known and not self.is_one_number


def payback(group: CellGroup, groups: Iterable[CellGroup]) -> Payback | None:
    """Work out when a cell with a precompute has paid for it.

    It is compared with the cell that differs in the method alone and runs the teacher on every
    batch: seconds of the precompute over the seconds that each step saves. None for a method that
    precomputes nothing, without such a cell, or without a number.
    """
    once, fast = group.estimates.get("precompute_time"), step_cost(group)
    rival = next(iter(find_rivals(group, groups)), None)
    slow = step_cost(rival) if rival else None
    if once is None or fast is None or rival is None or slow is None:
        return None

    def steps(once: float, slow: float, fast: float) -> float:
        return once / (slow - fast) if slow > fast else math.inf

    return Payback(
        rival=rival,
        steps=steps(once.value, slow.value, fast.value),
        # Each part at that end of its runs that makes it pay soonest, or latest.
        ends=(
            steps(span(once)[0], slow.ends[1], fast.ends[0]),
            steps(span(once)[1], slow.ends[0], fast.ends[1]),
        ),
        per_epoch=group.steps_per_epoch,
        extrapolated=once.extrapolated or is_extrapolated(group) or is_extrapolated(rival),
        contended="contended" in once.marks or slow.contended or fast.contended,
    )


def find_rivals(group: CellGroup, groups: Iterable[CellGroup]) -> list[CellGroup]:
    """List the cells that differ from one in the method alone and have a teacher in every step.

    A method counts as such by what it measured, a teacher and no precompute, so that methods of
    plug-ins take part; Teacher-KD comes first.
    """

    def all_but_method(cell: CellGroup) -> tuple[object, ...]:
        settings = {k: v for k, v in cell.settings.items() if k not in ("cell_id", "method")}
        return cell.matrix, cell.environment, settings

    found = [
        other
        for other in groups
        if other.method != group.method
        and other.settings["teacher"] is not None
        and other.finished
        and "precompute_time" not in other.estimates
        and all_but_method(other) == all_but_method(group)
    ]
    return sorted(found, key=lambda other: other.method != "teacher-kd")


@dataclass(frozen=True)
class StepCost:
    """What a step costs, in seconds, with all that is around it; `ends` are those of its runs."""

    value: float
    ends: tuple[float, float]
    contended: bool


def step_cost(group: CellGroup) -> StepCost | None:
    """Work out what a step of a cell costs.

    Where whole epochs were measured, that is an epoch over its steps: the median step leaves out
    what lies between steps. Else it is the median step; None where nothing was timed.
    """
    found, steps = group.estimates.get("epoch_time"), group.steps_per_epoch
    if found is None or found.extrapolated or not steps:
        found, steps = group.estimates.get("step_time"), 1
    if found is None:
        return None
    low, high = span(found)
    return StepCost(found.value / steps, (low / steps, high / steps), "contended" in found.marks)


def span(estimate: Estimate) -> tuple[float, float]:
    """Return how far a number may be off: its interval, or the range of too few runs for one."""
    return estimate.interval or estimate.ends


def is_extrapolated(group: CellGroup) -> bool:
    """Whether a cell's time per epoch was worked out from fewer steps."""
    epoch = group.estimates.get("epoch_time")
    return epoch is not None and epoch.extrapolated


def payback_text(found: Payback, against: str = "") -> str:
    """Say when a precompute pays, as the end of a sentence: `pays after 22 steps (1.0 epochs)`."""
    rival = f" against {against}" if against else ""
    if found.contended:
        return f"cannot be said to pay{rival}: every run of one of the two was contended"
    if not math.isfinite(found.ends[0]):
        return f"never pays{rival}, its step is not the faster one"
    if found.is_one_number:
        return f"pays after {_steps(found, found.steps)}{rival}"
    if found.is_range:
        return f"pays after {_steps(found, *found.ends)}{rival}, as the runs differ"
    earliest = _steps(found, found.ends[0])
    return f"pays after {earliest} at the earliest{rival}, or never: the runs differ too much"


def _steps(found: Payback, *counts: float) -> str:
    mark = "~" if found.extrapolated else ""
    text = f"{mark}{' to '.join(map(format_count, counts))} steps"
    if not found.per_epoch:
        return text
    epochs = " to ".join(_epochs(count / found.per_epoch) for count in counts)
    return f"{text} ({mark}{epochs} epochs)"


def _epochs(count: float) -> str:
    if count < 0.095:
        return f"{count:.1g}"
    return f"{count:,.1f}" if count < 99.95 else f"{count:,.0f}"
