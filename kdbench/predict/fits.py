"""Whether a cell fits into so much memory, and the largest batch that does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from math import lcm, prod
from typing import Any

from kdbench.predict.allocator import OutOfMemoryError
from kdbench.predict.replay import most_held
from kdbench.predict.shared_traces import Traces, family_of
from kdbench.predict.trace import Trace
from kdbench.spec.cell import CellRun
from kdbench.spec.device_profile import Profile

# Three traces tell a quadratic: most blocks grow in line with the batch, and Teacher-KD's logits
# with its square.
_POINTS = 3
# One trace alone says which blocks grow, by what they are for: enough to come near.
_STEPS = ("first", "second", "steady")
_GROWING = ("activations", "inputs", "workspace", "other")
# After so many guesses that were wrong, a search by halves is quicker.
_TRUSTED = 6

Fits = Callable[[int], bool]
#: from the largest size known to fit and the smallest known not to: the largest that does, perhaps
Guess = Callable[[int, int], int]


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


def fit(run: CellRun, traces: Traces, capacity: int) -> Fit:
    """Find out whether a cell fits, and its largest batch that does.

    The answer is a trace's own: that batch was traced and fits, and one image more does not.

    Args:
        run: of the cell.
        traces: of this cell and others, on the device.
        capacity: bytes that the device has for the process.

    Raises:
        InputError: the cell cannot be run on such a device.
    """
    profile = traces.profile
    room = capacity - profile.context_bytes
    traced = traces.of(run)
    fits = _suffices(traced, profile, room)
    key = family_of(run), room
    if key not in traces.largest:
        traces.largest[key] = _largest(run, traces, room, fits=fits)
    largest = traces.largest[key]
    return Fit(
        needs_bytes=most_held(traced, profile) + profile.context_bytes,
        fits=fits,
        largest_batch=largest or None,
        whole_data=largest == run.cell.data.train_images,
    )


def _largest(run: CellRun, traces: Traces, room: int, *, fits: bool) -> int:
    """Find the largest batch that fits; whether the cell's own does is known."""
    own, limit = run.cell.training.batch_size, run.cell.data.train_images
    known = {own: traces.of(run)}

    def looked(batch: int) -> bool:
        known[batch] = traces.of(_with_batch(run, batch))
        return _suffices(known[batch], traces.profile, room)

    def guess(low: int, high: int) -> int:
        last = dict(list(known.items())[-_POINTS:])
        return _guessed(last, traces.profile, room, low, high)

    low, high = (own, limit + 1) if fits else (0, own)
    return largest_fitting(looked, low=low, high=high, limit=limit, guess=guess)


def largest_fitting(fits: Fits, *, low: int, high: int, limit: int, guess: Guess) -> int:
    """Find the largest size that fits; where the guesses are right, by two looks.

    Args:
        fits: whether a size does; larger ones do not where a smaller one does not.
        low: a size that is known to, or 0.
        high: one that is known not to, or `limit` + 1.
        limit: no larger size is looked at.
        guess: what the answer may be.

    Returns:
        0 where not even 1 fits.
    """
    looks = 0
    while high - low > 1:
        if looks < _TRUSTED:
            # what is believed to be the answer already is proved by the next one
            size = max(low + 1, min(guess(low, high), high - 1))
        else:
            size = _between(low, high, limit)
        looks += 1
        low, high = (size, high) if fits(size) else (low, size)
    return low


def _between(low: int, high: int, limit: int) -> int:
    """Return a size that halves what is left, or doubles what fits where no end is known."""
    return min(2 * low, limit) if low and high > limit else (low + high) // 2


def _guessed(known: Mapping[int, Trace], profile: Profile, room: int, low: int, high: int) -> int:
    """Guess the largest batch that fits, from traces of others scaled to it."""
    if len({len(traced.events) for traced in known.values()}) > 1:
        return _between(low, high, high - 1)  # they do different things: nothing to scale
    held = {batch: most_held(traced, profile) for batch, traced in known.items()}

    def fits(batch: int) -> bool:
        scaled = _scaled(known, batch)
        held[batch] = most_held(scaled, profile)
        return _suffices(scaled, profile, room)

    def next_guess(low: int, high: int) -> int:
        if len(held) < 2:
            return 2 * low or high // 2
        (one, there), (other, then) = list(held.items())[-2:]
        slope = (then - there) / (other - one)
        return other + int((room - then) // slope) if slope > 0 else _between(low, high, high - 1)

    return largest_fitting(fits, low=low, high=high, limit=high - 1, guess=next_guess)


def _scaled(known: Mapping[int, Trace], wanted: int) -> Trace:
    """Make up the trace of another batch: each block by the polynomial through those that are."""
    (batch, traced), *more = known.items()
    if not more:
        return _grown(traced, batch, wanted)
    # Lagrange's, over one denominator: exact in integers
    parts = [
        (
            prod(wanted - other for other in known if other != batch),
            prod(batch - other for other in known if other != batch),
        )
        for batch in known
    ]
    whole = lcm(*(below for _, below in parts))
    weights = [above * (whole // below) for above, below in parts]
    events = []
    for found in zip(*(t.events for t in known.values()), strict=True):
        change = sum(w * e.change for w, e in zip(weights, found, strict=True))
        events.append(found[0]._replace(change=_divided(change, whole)))
    return replace(traced, events=events)


def _grown(traced: Trace, batch: int, wanted: int) -> Trace:
    """Make up the trace of another batch from one alone."""
    events = list(traced.events)
    for stage, start, end in traced.windows():
        if stage in _STEPS:
            for number in range(start, end):
                event = events[number]
                if event.block.category in _GROWING:
                    events[number] = event._replace(change=_divided(event.change * wanted, batch))
    return replace(traced, events=events)


def _divided(value: int, by: int) -> int:
    """Divide and round, what comes and what goes alike."""
    size = (2 * abs(value) + by) // (2 * by)
    return size if value >= 0 else -size


def _with_batch(run: CellRun, batch: int) -> CellRun:
    training = run.cell.training.model_copy(update={"batch_size": batch})
    return run.model_copy(update={"cell": run.cell.model_copy(update={"training": training})})


def _suffices(traced: Trace, profile: Profile, room: int) -> bool:
    if most_held(traced, profile) <= room:
        return True
    if profile.device == "cpu":
        return False
    try:  # the allocator gives back what it caches before it gives up
        most_held(traced, profile, capacity=room)
    except OutOfMemoryError:
        return False
    return True
