"""The allocator's recorded histories: those of a card where there are any, and one by hand."""

import pytest

from kdbench.predict.allocator import MIB
from tests.gpu.replays import differences, read_history
from tests.support import REPOSITORY

RECORDED = sorted((REPOSITORY / "results" / "reference").glob("*/histories/*.json.gz"))

# As torch tells it: a segment of 20 MiB with one block held, and one of 2 MiB, all free.
SEGMENTS = [
    {
        "address": 0,
        "total_size": 20 * MIB,
        "segment_type": "large",
        "stream": 0,
        "blocks": [[0, 6 * MIB, 6 * MIB, "active_allocated"], [6 * MIB, 14 * MIB, 0, "inactive"]],
    },
    {
        "address": 100 * MIB,
        "total_size": 2 * MIB,
        "segment_type": "small",
        "stream": 0,
        "blocks": [[100 * MIB, 2 * MIB, 0, "inactive"]],
    },
]
STEP = [
    ["alloc", 8 * MIB, 6 * MIB, 0],  # from the rest of the first segment
    ["alloc", 1000, 100 * MIB, 0],
    ["segment_alloc", 20 * MIB, 200 * MIB, 0],
    ["alloc", 7 * MIB, 200 * MIB, 0],
    ["free_requested", 6 * MIB, 0, 0],
    ["free_completed", 6 * MIB, 0, 0],
    ["alloc", 5 * MIB, 0, 0],  # where that was
    ["segment_alloc", 32 * MIB, 300 * MIB, 0],
    ["alloc", 31 * MIB, 300 * MIB, 0],
]


def test_a_history_by_hand():
    assert differences({"segments": SEGMENTS, "steps": [STEP]}) == []


@pytest.mark.parametrize(
    ("place", "action"),
    [(2, ["alloc", 512, 101 * MIB, 0]), (7, ["segment_alloc", 34 * MIB, 300 * MIB, 0])],
)
def test_another_behaviour_is_told(place, action):
    steps = [*STEP[:place], action, *STEP[place + 1 :]]
    (told,) = differences({"segments": SEGMENTS, "steps": [steps]})
    assert "the card holds" in told


def test_histories_of_a_card():
    for path in RECORDED:
        told = read_history(path)
        assert "error" not in told, path
        assert differences(told) == [], path
    readme = (REPOSITORY / "README.md").read_text()
    assert bool(RECORDED) == ("No figure here was measured on a GPU yet" not in readme)
