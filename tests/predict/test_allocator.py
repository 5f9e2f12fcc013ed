"""The model of the CUDA caching allocator: its rules by hand, and what holds in any use."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.predict.allocator import MIB, CachingAllocator, OutOfMemoryError, rounded


def held(*sizes):
    allocator = CachingAllocator()
    return allocator, [allocator.allocate(size) for size in sizes]


@pytest.mark.parametrize(
    ("size", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),
        (512, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),  # the largest small block
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),  # from here on made to measure
        (10 * MIB + 1, 10 * MIB + 512, 12 * MIB),
        (11 * MIB, 12 * MIB, 12 * MIB),  # 1 MiB is left, and only more is split off
    ],
)
def test_a_block_and_its_segment(size, allocated, reserved):
    allocator, _ = held(size)
    assert (allocator.allocated, allocator.reserved) == (allocated, reserved)


def test_a_remainder_counts_as_allocated_where_it_is_not_split_off():
    allocator, (block,) = held(12 * MIB)
    allocator.release(block)
    allocator.allocate(11 * MIB)
    assert allocator.allocated == 12 * MIB, "1 MiB is left, and only more is split off"
    allocator, (block,) = held(14 * MIB)
    allocator.release(block)
    allocator.allocate(12 * MIB)
    assert allocator.allocated == 12 * MIB


def test_small_blocks_share_a_segment():
    allocator, blocks = held(*[MIB // 2] * 4)
    assert allocator.reserved == 2 * MIB
    allocator.allocate(512)
    assert allocator.reserved == 4 * MIB
    assert len({block.address for block in blocks}) == 4


def test_the_smallest_block_that_will_do_is_taken():
    allocator, (large, _, middle, _) = held(40 * MIB, 512, 30 * MIB, 512)
    allocator.release(large)
    allocator.release(middle)
    assert allocator.allocate(29 * MIB).address == middle.address
    assert allocator.reserved == 72 * MIB


def test_neighbours_that_are_free_join():
    # three in one segment of 20 MiB
    allocator, (first, second, third) = held(6 * MIB, 6 * MIB, 6 * MIB)
    assert allocator.reserved == 20 * MIB
    allocator.release(first)
    allocator.release(third)
    allocator.allocate(9 * MIB)
    assert allocator.reserved == 40 * MIB, "6 and 8 MiB are free, but not beside each other"
    allocator.release(second)
    allocator.allocate(20 * MIB)
    assert allocator.reserved == 40 * MIB, "the whole segment is one block again"


def test_pools_do_not_lend_to_each_other():
    allocator, (block,) = held(9 * MIB)
    allocator.release(block)
    allocator.allocate(MIB)
    assert allocator.reserved == 22 * MIB


def test_emptying_the_cache_keeps_segments_in_use():
    allocator, (first, second, alone) = held(6 * MIB, 6 * MIB, 50 * MIB)
    allocator.release(first)
    allocator.release(alone)
    allocator.empty_cache()
    assert (allocator.allocated, allocator.reserved) == (6 * MIB, 20 * MIB)
    allocator.release(second)
    allocator.empty_cache()
    assert allocator.reserved == 0


def test_what_is_cached_is_given_back_before_memory_runs_out():
    allocator = CachingAllocator(100 * MIB)
    allocator.release(allocator.allocate(60 * MIB))
    kept = allocator.allocate(80 * MIB)
    assert allocator.reserved == 80 * MIB
    with pytest.raises(OutOfMemoryError, match="asked for 31,457,280 bytes, 20,971,520 free"):
        allocator.allocate(30 * MIB)
    allocator.release(kept)
    allocator.allocate(100 * MIB)
    assert allocator.reserved == 100 * MIB


@settings(deadline=None)
@given(st.data())
def test_in_any_use(data):
    """Blocks never overlap, counts are those of the blocks, and what is free joins fully."""
    allocator, blocks = CachingAllocator(), []
    sizes = st.one_of(st.integers(1, 3 * MIB), st.integers(1, 50 * MIB))
    for _ in range(data.draw(st.integers(1, 40))):
        if blocks and data.draw(st.booleans()):
            allocator.release(blocks.pop(data.draw(st.integers(0, len(blocks) - 1))))
        else:
            size = data.draw(sizes)
            blocks.append(allocator.allocate(size))
            assert rounded(size) <= blocks[-1].size <= rounded(size) + 2 * MIB
        assert allocator.allocated == sum(block.size for block in blocks) <= allocator.reserved
        ends = sorted((block.address, block.address + block.size) for block in blocks)
        assert all(end <= start for (_, end), (start, _) in pairwise(ends))
    reserved = allocator.reserved
    for block in blocks:
        allocator.release(block)
    assert (allocator.allocated, allocator.reserved) == (0, reserved)
    allocator.empty_cache()
    assert allocator.reserved == 0, "every segment is one free block again"
