"""From a trace to figures: replayed through the allocator of a device profile."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from kdbench.predict.allocator import Block, CachingAllocator
from kdbench.predict.trace import ON_HOST, Stage, Trace
from kdbench.spec.device_profile import Profile
from kdbench.worker.probes.ledger import START
from kdbench.worker.probes.tally import Block as Held
from kdbench.worker.probes.tally import Event, Share, changes_of, shares_of
from kdbench.worker.probes.timeline import Columns, timeline

# cuBLAS takes its workspace when a thread multiplies first: the main one in whatever runs a model
# first, and autograd's own in the first backward.
_MULTIPLIES = ("teacher", "forward")
_CUBLAS = "cublas"


@dataclass(frozen=True)
class Peak:
    """A stage's peak.

    Attributes:
        allocated: bytes, of the stage's own peak.
        reserved: bytes that the caching allocator holds at most until the stage's end; None where
            there is none.
        shares: what the allocated bytes are for.
    """

    allocated: int
    reserved: int | None
    shares: list[Share]


@dataclass(frozen=True)
class Replay:
    """What a trace comes to on a device."""

    peaks: dict[Stage, Peak]
    #: the steady step's, in bytes as the device counts them
    timeline: Columns


def replay(trace: Trace, profile: Profile, *, capacity: int | None = None) -> Replay:
    """Replay a trace on a device.

    Args:
        trace: made for this profile.
        profile: the device.
        capacity: bytes that its allocator may have; None: as many as it asks for.

    Raises:
        OutOfMemoryError: they do not suffice.
    """
    if profile.device == "cpu":  # no allocator of torch's own stands between
        ends = list(range(len(trace.events) + 1))
        return _figures(trace, trace.events, ends, None)
    card = _Card(profile, capacity)
    return _figures(trace, card.events, card.run(trace), card.reserved)


def most_held(trace: Trace, profile: Profile, *, capacity: int | None = None) -> int:
    """Replay a trace for the one figure of what its device holds at most: reserved, or allocated.

    Args and errors are those of `replay`.
    """
    if profile.device == "cpu":
        return max(accumulate((event.change for event in trace.events), initial=0))
    card = _Card(profile, capacity)
    card.run(trace)
    return max(card.reserved)


class _Card:
    """Does what a trace does to a card's allocator, and tells it in the bytes that it counts.

    Attributes:
        events: what came and went, in bytes of whole blocks.
        reserved: bytes that are held from the device after each number of events.
    """

    def __init__(self, profile: Profile, capacity: int | None) -> None:
        self.allocator = CachingAllocator(capacity)
        self.events: list[Event] = []
        self.reserved = [0]
        self._requested: dict[int, int] = {}
        self._blocks: dict[int, Block] = {}
        # kept alive: an address must stay one block's
        self._workspaces: list[Held] = []
        self._workspace = profile.cublas_workspace_bytes
        self._threads = {_MULTIPLIES, ("backward",)} if self._workspace else set()

    def run(self, trace: Trace) -> list[int]:
        """Do all that a trace does.

        Returns:
            How many of `events` its first ones came to, by their number.
        """
        ends, releases = [0], set(trace.releases)
        for number, event in enumerate(trace.events):
            if number in releases:
                self.allocator.empty_cache()
            if event.block.category != ON_HOST:
                self.take(event)
            ends.append(len(self.events))
        return ends

    def take(self, event: Event) -> None:
        """Do what an event does, and before it what cuBLAS does."""
        for parts in [parts for parts in self._threads if event.part in parts]:
            self._threads.remove(parts)
            workspace = Held(self._workspace, "workspace", _CUBLAS)
            self._workspaces.append(workspace)
            self._resize(Event(workspace, self._workspace, event.part))
        self._resize(event)

    def _resize(self, event: Event) -> None:
        """Take a block, give it back, or have one of another size in its place."""
        key = id(event.block)
        wanted = self._requested.get(key, 0) + event.change
        self._requested[key] = wanted
        held = self._blocks.pop(key, None)
        if held is not None:
            size = held.size  # it grows as soon as it joins its neighbours
            self.allocator.release(held)
            self._tell(event, -size)
        if wanted > 0:
            self._blocks[key] = self.allocator.allocate(wanted)
            self._tell(event, self._blocks[key].size)

    def _tell(self, event: Event, change: int) -> None:
        self.events.append(event._replace(change=change))
        self.reserved.append(self.allocator.reserved)


def _figures(
    trace: Trace, events: list[Event], ends: list[int], reserved: list[int] | None
) -> Replay:
    """Find the stages' peaks.

    Args:
        trace: what was replayed.
        events: what the device made of it.
        ends: how many of those belong to the first events of the trace, by their number.
        reserved: bytes held from the device after each number of events; None: not known.
    """
    live = [0, *accumulate(event.change for event in events)]
    peaks: dict[Stage, Peak] = {}
    for stage, first, last in trace.windows():
        start, end = ends[first], ends[last]
        top = max(range(start, end + 1), key=live.__getitem__)
        found = Peak(
            allocated=live[top],
            reserved=None if reserved is None else max(reserved[start : end + 1]),
            shares=shares_of(events[:top]),
        )
        if stage not in peaks or peaks[stage].allocated < found.allocated:
            peaks[stage] = found
    _, first, last = list(trace.windows())[-1]
    return Replay(peaks, _timeline(events, ends[first], ends[last]))


def _timeline(events: list[Event], start: int, end: int) -> Columns:
    before = [change._replace(part=START) for change in changes_of(events[:start])]
    return timeline([*before, *changes_of(events[start:end])])
