"""A model of torch's CUDA caching allocator, as far as it determines memory use.

The rules are those of c10/cuda/CUDACachingAllocator.cpp with its default settings: one stream, no
expandable segments, no largest size to split, no rounding to powers of two.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass, field

MIB = 1 << 20
#: every block is a multiple of this
ROUNDING = 512
#: the largest block that comes from the pool of small ones
SMALL = MIB
SMALL_SEGMENT = 2 * MIB
LARGE_SEGMENT = 20 * MIB
#: from this size on a block gets its own segment, in multiples of `OWN_SEGMENT_ROUNDING`
OWN_SEGMENT = 10 * MIB
OWN_SEGMENT_ROUNDING = 2 * MIB


class OutOfMemoryError(Exception):
    """The device has no room for another segment."""


@dataclass(eq=False)
class Block:
    """A part of a segment, in use or free."""

    address: int
    size: int
    small: bool
    held: bool = False
    before: Block | None = field(default=None, repr=False)
    after: Block | None = field(default=None, repr=False)


def rounded(size: int) -> int:
    """Round a request up to the size of its block."""
    return max(ROUNDING, -(-size // ROUNDING) * ROUNDING)


def segment_size(size: int) -> int:
    """Return the size of a new segment for a request that no free block can hold."""
    if size <= SMALL:
        return SMALL_SEGMENT
    if size < OWN_SEGMENT:
        return LARGE_SEGMENT
    return -(-size // OWN_SEGMENT_ROUNDING) * OWN_SEGMENT_ROUNDING


class CachingAllocator:
    """Hands out blocks, best fit first, and caches freed ones.

    `capacity` is how many bytes it may take from the device (None: unlimited). `allocated` and
    `reserved` count as `torch.cuda.memory_allocated` and `memory_reserved` do.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self._capacity = capacity
        # by pool (small: True), sorted by size and then address, like the allocator's own sets
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
        self._at: dict[int, Block] = {}
        self._next_address = 0
        self.allocated = 0
        self.reserved = 0

    def allocate(self, size: int) -> Block:
        """Allocate a block of at least `size` bytes (not 0), or raise OutOfMemoryError."""
        wanted = rounded(size)
        small = wanted <= SMALL
        block = self._best_fit(wanted, small) or self._new_segment(wanted, small)
        if block.size - wanted >= ROUNDING if small else block.size - wanted > SMALL:
            self._split(block, wanted)
        block.held = True
        self.allocated += block.size
        return block

    def release(self, block: Block) -> None:
        """Free a block; it joins its free neighbours."""
        block.held = False
        self.allocated -= block.size
        for other in (block.before, block.after):
            if other is not None and not other.held:
                self._remove_free(other)
                self._join(block, other)
        self._add_free(block)

    def empty_cache(self) -> None:
        """Release the segments in which nothing is in use."""
        for pool in self._free.values():
            for _, address in list(pool):
                block = self._at[address]
                if block.before is None and block.after is None:
                    self._remove_free(block)
                    self.reserved -= block.size

    def _best_fit(self, wanted: int, small: bool) -> Block | None:
        pool = self._free[small]
        place = bisect_left(pool, (wanted, -1))
        if place == len(pool):
            return None
        block = self._at[pool[place][1]]
        self._remove_free(block)
        return block

    def _new_segment(self, wanted: int, small: bool) -> Block:
        size = segment_size(wanted)
        if self._capacity is not None and self.reserved + size > self._capacity:
            self.empty_cache()
            if self.reserved + size > self._capacity:
                free = self._capacity - self.reserved
                raise OutOfMemoryError(f"asked for {wanted:,} bytes, {free:,} free")
        block = Block(self._next_address, size, small)
        self._next_address += size
        self.reserved += size
        return block

    def _split(self, block: Block, size: int) -> None:
        """Cut a block down to `size` bytes; the rest is free."""
        rest = Block(block.address + size, block.size - size, block.small)
        rest.before, rest.after = block, block.after
        if rest.after is not None:
            rest.after.before = rest
        block.after, block.size = rest, size
        self._add_free(rest)

    def _join(self, block: Block, other: Block) -> None:
        """Merge `other`, a free neighbour, into `block`."""
        block.size += other.size
        if other is block.before:
            block.address, block.before = other.address, other.before
        else:
            block.after = other.after
        if block.before is not None:
            block.before.after = block
        if block.after is not None:
            block.after.before = block

    def _add_free(self, block: Block) -> None:
        insort(self._free[block.small], (block.size, block.address))
        self._at[block.address] = block

    def _remove_free(self, block: Block) -> None:
        pool = self._free[block.small]
        del pool[bisect_left(pool, (block.size, block.address))]
        del self._at[block.address]
