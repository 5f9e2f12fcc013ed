"""Whether a cell fits into so much memory, and the largest batch that does."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

from kdbench.cell import CellRun
from kdbench.device_profile import Profile
from kdbench.predict.allocator import OutOfMemoryError
from kdbench.predict.replay import replay
from kdbench.predict.trace import Trace, trace

# Three traces tell a quadratic: most blocks grow in line with the batch, and Teacher-KD's logits
# with its square.
_SCALES = (1, 2, 4)

Fits = Callable[[int], bool]


@dataclass(frozen=True)
class Fit:
    """What a device with so much memory can take.

    Attributes:
        needs_bytes: of the allocator at most, set-up, precompute and steps, and of the process
            beside it.
        fits: whether the device has them; also where the allocator must give back what it caches.
        largest_batch: images in a step; None: not even one fits.
        whole_data: that batch is the whole data set: a larger one was not looked for.
    """

    needs_bytes: int
    fits: bool
    largest_batch: int | None
    whole_data: bool

    def row(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)


def fit(run: CellRun, profile: Profile, capacity: int) -> Fit:
    """Find out whether a cell fits, and its largest batch that does.

    Args:
        run: of the cell.
        profile: of the device.
        capacity: bytes that the device has for the process.

    Raises:
        InputError: the cell cannot be run on such a device.
    """
    room = capacity - profile.context_bytes
    own, limit = run.cell.training.batch_size, run.cell.data.train_images
    traced: dict[int, Trace] = {}

    def at(batch: int) -> Trace:
        if batch not in traced:
            traced[batch] = trace(_with_batch(run, batch), profile)
        return traced[batch]

    def fits(batch: int) -> bool:
        return _suffices(at(batch), profile, room)

    batches = sorted({min(scale * own, limit) for scale in _SCALES})
    guess = _guess([at(b) for b in batches], batches, profile, room, limit)
    largest = largest_fitting(fits, limit=limit, guess=guess)
    return Fit(
        needs_bytes=_needed(at(own), profile) + profile.context_bytes,
        fits=fits(own),
        largest_batch=largest or None,
        whole_data=largest == limit,
    )


def largest_fitting(fits: Fits, *, limit: int, guess: int) -> int:
    """Find the largest size that fits; where the guess is right, by two looks.

    Args:
        fits: whether a size does; larger ones do not where a smaller one does not.
        limit: no larger size is looked at.
        guess: where to begin.

    Returns:
        0 where not even 1 fits.
    """
    low, high = 0, limit + 1  # the largest known to fit, the smallest known not to
    size, step = min(max(guess, 1), limit), 1
    while high - low > 1:
        if fits(size):
            low, size = size, size + step
        else:
            high, size = size, size - step
        step *= 2  # away from a wrong guess ever faster...
        if not low < size < high or (low > 0 and high <= limit):
            size = (low + high) // 2  # ...and then by halves
    return low


def _guess(
    traces: Sequence[Trace], batches: Sequence[int], profile: Profile, room: int, limit: int
) -> int:
    """Guess the largest batch that fits, from traces of others scaled to it."""
    if len({len(t.events) for t in traces}) > 1 or len(traces) < len(_SCALES):
        return batches[0]  # they do different things: nothing to scale

    def fits(batch: int) -> bool:
        scaled = _scaled(traces, batches, batch)
        return _suffices(scaled, profile, room)

    return max(1, largest_fitting(fits, limit=limit, guess=batches[0]))


def _scaled(traces: Sequence[Trace], batches: Sequence[int], wanted: int) -> Trace:
    """Make up the trace of another batch: each block by the polynomial through those that are."""
    # Lagrange's: exact in fractions
    weights = [
        math.prod(
            (Fraction(wanted - other, batch - other) for other in batches if other != batch),
            start=Fraction(1),
        )
        for batch in batches
    ]
    events = []
    for found in zip(*(t.events for t in traces), strict=True):
        change = sum((w * e.change for w, e in zip(weights, found, strict=True)), Fraction(0))
        events.append(found[0]._replace(change=round(change)))
    return replace(traces[0], events=events)


def _with_batch(run: CellRun, batch: int) -> CellRun:
    training = run.cell.training.model_copy(update={"batch_size": batch})
    return run.model_copy(update={"cell": run.cell.model_copy(update={"training": training})})


def _needed(traced: Trace, profile: Profile) -> int:
    peaks = replay(traced, profile).peaks.values()
    return max(p.allocated if p.reserved is None else p.reserved for p in peaks)


def _suffices(traced: Trace, profile: Profile, room: int) -> bool:
    if _needed(traced, profile) <= room:
        return True
    if profile.device == "cpu":
        return False
    try:  # the allocator gives back what it caches before it gives up
        replay(traced, profile, capacity=room)
    except OutOfMemoryError:
        return False
    return True
