"""A step's timeline, and the ledger behind it, under any sequence of allocations and frees."""

from itertools import groupby

import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.worker.probes.account import account_step
from kdbench.worker.probes.allocations import Block, Event, timeline
from kdbench.worker.probes.ledger import Ledger
from tests.support.models import CPU, tiny_session

PARTS = ("data", "teacher", "forward", "backward", "optimizer")


def moments(columns):
    """Live bytes by category after each moment."""
    live, found = {}, {}
    for moment, category, size in zip(
        columns["moment"], columns["category"], columns["live_bytes"], strict=True
    ):
        live[category] = size
        found[moment] = dict(live)
    return [found[moment] for moment in sorted(found)]


def test_a_step_by_hand():
    def event(part, category, change):
        return Event(Block(abs(change), category, None), change, part)

    before = [event("start", "parameters", 100), event("start", "inputs", 10)]
    step = [
        event("data", "inputs", 5),
        event("forward", "activations", 40),
        event("backward", "activations", -40),
    ]
    rows = timeline(before, step)
    assert list(zip(*rows.values(), strict=True)) == [
        (0, "start", "activations", 0),
        (0, "start", "inputs", 10),
        (0, "start", "parameters", 100),
        (1, "data", "inputs", 15),
        (2, "forward", "activations", 40),
        (3, "backward", "activations", 0),
    ]


def test_no_changes_no_rows():
    assert set(map(len, timeline([], []).values())) == {0}


# what to do next: a part begins, a tensor comes, one of those there goes, or is viewed
MOVES = st.one_of(
    st.tuples(st.just("mark"), st.sampled_from(PARTS)),
    st.tuples(st.just("make"), st.integers(0, 4096)),
    st.tuples(st.just("drop"), st.integers(0, 20)),
    st.tuples(st.just("view"), st.integers(0, 20)),
)


@given(st.lists(st.integers(0, 4096), max_size=4), st.lists(MOVES, max_size=40))
def test_whatever_comes_and_goes(before, moves):
    held = [torch.empty(size, dtype=torch.uint8) for size in before]
    ledger = Ledger(CPU)
    ledger.register(held, "parameters")
    live = [sum(before)]
    with ledger:
        for what, value in moves:
            if what == "mark":
                ledger.mark(value)
            elif what == "make":
                held.append(torch.empty(value, dtype=torch.uint8))
            elif held and what == "drop":
                held.pop(value % len(held))
            elif held:
                held.append(held[value % len(held)][:1])
            storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in held}
            live.append(sum(storages.values()))
    columns = ledger.timeline()
    sums = [sum(categories.values()) for categories in moments(columns)]
    assert max(sums, default=0) == ledger.peak_bytes() == max(live)
    assert [size for size, _ in groupby(sums or [0])] == [size for size, _ in groupby(live)]
    assert all(size >= 0 for size in columns["live_bytes"])
    assert sum(share.size for share in ledger.shares()) == ledger.peak_bytes()


def test_the_parts_of_a_step_come_in_order(tmp_path):
    session = tiny_session(tmp_path, "teacher-kd")
    session.timed_step(next(session.draws(0)))
    ledger = account_step(session, next(session.draws(1))).ledger
    columns = ledger.timeline()
    assert list(dict.fromkeys(columns["part"])) == ["start", *PARTS]
    at_start = moments(columns)[0]
    assert at_start["parameters"] == sum(p.nbytes for p in session.student.parameters())
    assert at_start["gradients"] == at_start["parameters"], "the last step's, until they go"
    at_end = moments(columns)[-1]
    assert at_end["gradients"] == at_end["parameters"]
    assert at_end["optimizer_state"] == at_start["optimizer_state"]
    peak = max(moments(columns), key=lambda live: sum(live.values()))
    split = {}
    for share in ledger.shares():
        split[share.category] = split.get(share.category, 0) + share.size
    assert {name: size for name, size in peak.items() if size} == split
