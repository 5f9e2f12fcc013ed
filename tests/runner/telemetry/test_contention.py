"""When a cell counts as contended, and what it says: pure functions on samples."""

import pytest

from kdbench.runner.telemetry.contention import judge_contention

SECOND = 10**9
MEASURED = [(2 * SECOND, 6 * SECOND)]


def samples(elsewhere=(), *, usable=2, cores=None, neighbours=None):
    """One a second: what others kept busy, and (pid, name, computing) of who is on the card."""
    first = {"monotonic_ns": 0, "usable_processors": usable, "usable_cores": cores}
    rows = [first, *({"monotonic_ns": n * SECOND} for n in range(1, 9))]
    for row, rate in zip(rows[1:], elsewhere, strict=False):
        row["cpu_elsewhere"] = rate
    for row, others in zip(rows, neighbours or (), strict=False):
        if others is not None:
            row |= {"gpu_neighbours": len(others), "neighbours": others or None}
    return rows


@pytest.mark.parametrize(
    ("elsewhere", "usable", "cores", "threads", "contended"),
    [
        # a worker on all processors: what others take, it lacks
        ([0.05] * 8, 2, 2, 2, False),
        ([0.2] * 8, 2, 2, 2, True),
        # one thread of two is free for others
        ([1.0] * 8, 2, 2, 1, False),
        ([1.3] * 8, 2, 2, 1, True),
        # two hardware threads of one core are no room for two
        ([1.0] * 8, 8, 4, 4, True),
        ([3.5] * 8, 8, None, 4, False),
        # one busy second in four is what it is on average
        ([0.0] * 4 + [0.3] + [0.0] * 3, 2, 2, 2, False),
        ([0.0] * 4 + [0.9] + [0.0] * 3, 2, 2, 2, True),
        # before and after the timed steps it does not matter
        ([2.0, 2.0, 0, 0, 0, 0, 2.0, 2.0], 2, 2, 2, False),
        # more threads than processors leave no less than none
        ([0.05] * 8, 2, 2, 9, False),
        # what is not known is no verdict
        ([], 2, 2, 2, None),
        ([0.0] * 8, None, None, 2, None),
        ([0.0] * 8, 2, 2, None, None),
    ],
)
def test_processors_that_others_used(elsewhere, usable, cores, threads, contended):
    found = judge_contention(
        samples(elsewhere, usable=usable, cores=cores), MEASURED, threads=threads
    )
    assert found.contended is contended
    assert (found.words is not None) == bool(contended)


def test_what_was_used_is_told():
    found = judge_contention(samples([1.3] * 8), MEASURED, threads=2)
    assert found.words == "others kept 1.3 of 2 processors busy, the worker left 0 of 2 cores free"
    assert found.cpu_elsewhere == pytest.approx(1.3)


PYTHON, IDLE, UNKNOWN = [12, "python", True], [13, "jupyter", False], [14, None, None]


@pytest.mark.parametrize(
    ("neighbours", "words"),
    [
        ([[]] * 9, None),
        ([[PYTHON]] * 9, "also on the card: python (12)"),
        ([[IDLE]] * 9, None),
        ([[UNKNOWN]] * 9, "also on the card: process 14"),
        ([[IDLE, UNKNOWN, PYTHON]] * 9, "also on the card: python (12), process 14"),
        # told to compute once is enough; not reported at first, and then told not to, is not
        ([[[13, "jupyter", True]] if n == 4 else [IDLE] for n in range(9)], "jupyter (13)"),
        ([[[13, None, None]] if n < 3 else [IDLE] for n in range(9)], None),
        # a second before the timed steps counts, as the list is read once a second
        ([[PYTHON] if n == 1 else [] for n in range(9)], "python (12)"),
        ([[PYTHON] if n in (0, 8) else [] for n in range(9)], None),
    ],
)
def test_others_on_the_card(neighbours, words):
    found = judge_contention(samples(neighbours=neighbours), MEASURED, threads=2)
    assert found.contended is (words is not None)
    assert (words or "") in (found.words or "")


def test_others_that_cannot_be_told_apart_are_counted():
    rows = [row | {"gpu_neighbours": 2, "neighbours": [PYTHON]} for row in samples()]
    words = "also on the card: python (12), 1 of those that came after the worker"
    assert judge_contention(rows, MEASURED, threads=2).words == words


def test_both_are_told_and_one_of_them_suffices_for_a_verdict():
    both = judge_contention(samples([1.0] * 8, neighbours=[[PYTHON]] * 9), MEASURED, threads=2)
    assert both.words == (
        "others kept 1 of 2 processors busy, the worker left 0 of 2 cores free; "
        "also on the card: python (12)"
    )
    card_alone = judge_contention(samples(neighbours=[[]] * 9), MEASURED, threads=2)
    assert (card_alone.contended, card_alone.cpu_elsewhere) == (False, None)


def test_without_timed_steps_there_is_no_verdict():
    found = judge_contention(samples([2.0] * 8, neighbours=[[PYTHON]] * 9), [], threads=2)
    assert (found.contended, found.words) == (None, None)
    assert judge_contention([], MEASURED, threads=2).contended is None
