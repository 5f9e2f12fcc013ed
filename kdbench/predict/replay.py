"""Replays a trace through the allocator of a device profile."""

from dataclasses import dataclass
from itertools import accumulate

from kdbench.predict.allocator import Block, CachingAllocator
from kdbench.predict.trace import ON_HOST, Stage, Trace
from kdbench.spec.device_profile import Profile
from kdbench.worker.probes.allocations import Block as Storage
from kdbench.worker.probes.allocations import Columns, Event, Share, shares_of, timeline

# cuBLAS allocates a workspace when a thread first multiplies: the main thread's in the first
# forward pass of any model, and autograd's own in the first backward.
_MULTIPLIES = ("teacher", "forward")
_CUBLAS = "cublas"


@dataclass(frozen=True)
class Peak:
    """A stage's peak."""

    allocated: int  #: bytes, at the stage's own peak
    #: most bytes that the caching allocator holds within the stage; None: there is none
    reserved: int | None
    shares: list[Share]  #: the allocated bytes by category and module


@dataclass(frozen=True)
class Replay:
    """A trace's peaks and its steady step's timeline, in bytes as the device counts them."""

    peaks: dict[Stage, Peak]
    timeline: Columns


def replay(trace: Trace, profile: Profile, *, capacity: int | None = None) -> Replay:
    """Replay a trace on its device with `capacity` bytes (None: unlimited), or run out of them."""
    if profile.device == "cpu":  # torch has no caching allocator there
        ends = list(range(len(trace.events) + 1))
        return _peaks(trace, trace.events, ends, None)
    card = _Card(profile, capacity)
    return _peaks(trace, card.events, card.run(trace), card.reserved)


def most_held(trace: Trace, profile: Profile, *, capacity: int | None = None) -> int:
    """Return the most bytes that the device holds: reserved, or allocated on a CPU."""
    if profile.device == "cpu":
        return max(accumulate((event.change for event in trace.events), initial=0))
    card = _Card(profile, capacity)
    card.run(trace)
    return max(card.reserved)


class _Card:
    """Replays events through a GPU's allocator."""

    def __init__(self, profile: Profile, capacity: int | None) -> None:
        self.allocator = CachingAllocator(capacity)
        self.events: list[Event] = []  #: in bytes of whole blocks
        self.reserved = [0]  #: reserved bytes after each number of events
        self._requested: dict[int, int] = {}
        self._blocks: dict[int, Block] = {}
        # kept alive: an id must stay one block's
        self._workspaces: list[Storage] = []
        self._workspace = profile.cublas_workspace_bytes
        self._threads = {_MULTIPLIES, ("backward",)} if self._workspace else set()

    def run(self, trace: Trace) -> list[int]:
        """Replay a trace; returns the length of `events` after each number of its events."""
        ends, releases = [0], set(trace.releases)
        for number, event in enumerate(trace.events):
            if number in releases:
                self.allocator.empty_cache()
            if event.block.category != ON_HOST:
                self._take(event)
            ends.append(len(self.events))
        return ends

    def _take(self, event: Event) -> None:
        for parts in [parts for parts in self._threads if event.part in parts]:
            self._threads.remove(parts)
            workspace = Storage(self._workspace, "workspace", _CUBLAS)
            self._workspaces.append(workspace)
            self._resize(Event(workspace, self._workspace, event.part))
        self._resize(event)

    def _resize(self, event: Event) -> None:
        """Allocate a block, free it, or replace it by one of another size."""
        key = id(event.block)
        wanted = self._requested.get(key, 0) + event.change
        self._requested[key] = wanted
        held = self._blocks.pop(key, None)
        if held is not None:
            size = held.size  # it grows as soon as it joins its neighbours
            self.allocator.release(held)
            self._append(event, -size)
        if wanted > 0:
            self._blocks[key] = self.allocator.allocate(wanted)
            self._append(event, self._blocks[key].size)

    def _append(self, event: Event, change: int) -> None:
        self.events.append(event._replace(change=change))
        self.reserved.append(self.allocator.reserved)


def _peaks(
    trace: Trace, events: list[Event], ends: list[int], reserved: list[int] | None
) -> Replay:
    """Find the stages' peaks.

    `ends` has the number of the device's events after each number of the trace's events, `reserved`
    the reserved bytes after each number of device events (None: unknown).
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
    # the last stage is the steady step
    return Replay(peaks, timeline(events[:start], events[start:end]))
