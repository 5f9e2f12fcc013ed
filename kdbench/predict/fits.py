"""Whether a cell fits into a given amount of memory, and the largest batch that does."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import lcm, prod

from kdbench.predict.allocator import OutOfMemoryError
from kdbench.predict.replay import most_held
from kdbench.predict.trace import Trace, TraceCache, with_training
from kdbench.spec.cell import CellRun
from kdbench.spec.device_profile import Profile

# Three traces determine a quadratic: most blocks grow linearly with the batch, and Teacher-KD's
# logits with its square.
_POINTS = 3
# With a single trace the blocks that grow are chosen by category: enough for a first estimate.
_STEPS = ("first", "second", "steady")
_GROWING = ("activations", "inputs", "workspace", "other")
# After so many wrong guesses a binary search is quicker.
_MOST_GUESSES = 6

Fits = Callable[[int], bool]
#: guesses the largest size that fits, from the largest known to and the smallest known not to
Guess = Callable[[int, int], int]


@dataclass(frozen=True)
class Fit:
    """How a cell fits into a device's memory."""

    #: most bytes held by the allocator, over set-up, precompute and steps, plus those of the
    #: process beside it
    needs_bytes: int
    fits: bool  #: whether the device has them, if need be after the allocator empties its cache
    largest_batch: int | None  #: images in a step; None: not even one fits
    whole_data: bool  #: that batch is the whole data set, and no larger one was tried


def fit(run: CellRun, traces: TraceCache, capacity: int) -> Fit:
    """Determine whether a cell fits in `capacity` bytes, and its largest batch that does.

    Both are traced, not extrapolated: that batch fits, and one more image does not.
    """
    profile = traces.profile
    room = capacity - profile.context_bytes
    traced = traces.get(run)
    fits = _suffices(traced, profile, room)
    key = run.cell.trace_key(any_batch=True), room
    if key not in traces.largest:
        traces.largest[key] = _largest(run, traces, room, fits=fits)
    largest = traces.largest[key]
    return Fit(
        needs_bytes=most_held(traced, profile) + profile.context_bytes,
        fits=fits,
        largest_batch=largest or None,
        whole_data=largest == run.cell.data.train_images,
    )


def _largest(run: CellRun, traces: TraceCache, room: int, *, fits: bool) -> int:
    """Find the largest batch that fits; `fits` says whether the cell's own does."""
    own, limit = run.cell.training.batch_size, run.cell.data.train_images
    known = {own: traces.get(run)}

    def try_batch(batch: int) -> bool:
        known[batch] = traces.get(with_training(run, batch_size=batch))
        return _suffices(known[batch], traces.profile, room)

    def guess(low: int, high: int) -> int:
        last = dict(list(known.items())[-_POINTS:])
        return _guessed(last, traces.profile, room, low, high)

    low, high = (own, limit + 1) if fits else (0, own)
    return largest_fitting(try_batch, low=low, high=high, limit=limit, guess=guess)


def largest_fitting(fits: Fits, *, low: int, high: int, limit: int, guess: Guess) -> int:
    """Find the largest size up to `limit` that fits; two tries suffice where the guess is right.

    `low` is known to fit, or 0; `high` is known not to, or `limit` + 1. Returns 0 if not even 1
    fits.
    """
    tries = 0
    while high - low > 1:
        chosen = guess(low, high) if tries < _MOST_GUESSES else _between(low, high, limit)
        # a guess that is already known to fit is proved by trying the next size
        size = max(low + 1, min(chosen, high - 1))
        tries += 1
        low, high = (size, high) if fits(size) else (low, size)
    return low


def _between(low: int, high: int, limit: int) -> int:
    """Return the middle, or twice what fits where no upper end is known."""
    return min(2 * low, limit) if low and high > limit else (low + high) // 2


def _guessed(known: Mapping[int, Trace], profile: Profile, room: int, low: int, high: int) -> int:
    """Guess the largest batch that fits by scaling known traces."""
    if len({len(traced.events) for traced in known.values()}) > 1:
        return _between(low, high, high - 1)  # different operations: nothing to scale
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
    """Extrapolate the trace of another batch: each block by a polynomial through the known ones."""
    (batch, traced), *more = known.items()
    if not more:
        return _grown(traced, batch, wanted)
    # Lagrange's form over one denominator: exact in integers
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
    """Extrapolate the trace of another batch from a single one."""
    events = list(traced.events)
    for stage, start, end in traced.windows():
        if stage in _STEPS:
            for number in range(start, end):
                event = events[number]
                if event.block.category in _GROWING:
                    events[number] = event._replace(change=_divided(event.change * wanted, batch))
    return replace(traced, events=events)


def _divided(value: int, by: int) -> int:
    """Divide and round to nearest, symmetrically for allocations and frees."""
    size = (2 * abs(value) + by) // (2 * by)
    return size if value >= 0 else -size


def _suffices(traced: Trace, profile: Profile, room: int) -> bool:
    if most_held(traced, profile) <= room:
        return True
    if profile.device == "cpu":
        return False
    try:  # the allocator empties its cache before it gives up
        most_held(traced, profile, capacity=room)
    except OutOfMemoryError:
        return False
    return True
