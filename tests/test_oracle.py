"""The ledger against torch's own records, and what reads those."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.worker.account import account_step, profiled_peak
from kdbench.worker.oracle import (
    HostRecord,
    cuda_blocks,
    cuda_peak,
    host_changes,
    peak_growth,
    renew_gradients,
)
from tests.models import CPU, tiny_session

KIB = 1024
METHODS = ("teacher-kd", "embed-kd", "cached-kd", "student-only")
# How far apart they may be. Apart from a few scalars, what the ledger cannot see is told here.
SETTINGS = {
    (): KIB,
    ('training.attention="sdpa"',): KIB,
    ("students.small.attention_dropout=0.0", 'training.attention="sdpa"'): KIB,
    ("students.small.depth=5", "students.small.patch_size=1"): KIB,
    # a checkpoint keeps the random numbers' state (5 KB) of each of two blocks past dispatch
    ("training.checkpointing=true",): 12 * KIB,
    # oneDNN copies what it multiplies in bf16 and fp16, within the product
    ('training.precision="bf16"',): 64 * KIB,
    ('training.precision="fp16"',): 64 * KIB,
}


def accounted(folder, method, settings, steps=1):
    session = tiny_session(folder, method, *settings)
    draws = session.draws(0)
    for _ in range(steps):
        session.timed_step(next(draws))
    return session, account_step(session, next(draws)), draws


@pytest.mark.parametrize(("settings", "apart"), SETTINGS.items(), ids=str)
def test_the_ledger_agrees_with_torchs_profiler(tmp_path, settings, apart):
    _, account, _ = accounted(tmp_path, "embed-kd", settings)
    assert 0 <= account.second_peak_bytes - account.ledger.peak_bytes() <= apart


@pytest.mark.parametrize("method", METHODS)
def test_it_does_for_all_methods_and_in_the_first_step(tmp_path, method):
    for steps in (0, 2):  # the first has no gradients and no optimizer state yet
        _, account, _ = accounted(tmp_path, method, (), steps)
        assert 0 <= account.second_peak_bytes - account.ledger.peak_bytes() <= KIB


def test_the_ledger_changes_nothing_of_what_the_profiler_sees(tmp_path):
    session, account, draws = accounted(tmp_path, "teacher-kd", ())
    for _ in range(2):
        assert profiled_peak(session, next(draws)) == account.second_peak_bytes


def test_a_ledger_that_misses_a_block_would_be_found_out(tmp_path):
    """What is taken below dispatch shows as unattributed: the oracle has eyes of its own."""
    session = tiny_session(tmp_path, "student-only")
    session.timed_step(next(session.draws(0)))
    hidden = []
    forward = session.forward

    def hiding(batch, mark):
        with torch.utils._python_dispatch._disable_current_modes():
            hidden.append(torch.empty(10 * KIB * KIB, dtype=torch.uint8))
        return forward(batch, mark)

    plain = account_step(session, next(session.draws(1)))
    session.forward = hiding
    account = account_step(session, next(session.draws(1)))
    assert account.ledger.peak_bytes() == plain.ledger.peak_bytes()
    unattributed = account.second_peak_bytes - account.ledger.peak_bytes()
    assert unattributed == pytest.approx(10 * KIB * KIB, abs=KIB)


def test_gradients_renewed_under_the_record_are_seen_going():
    layer = torch.nn.Linear(64, 64)
    layer(torch.ones(1, 64)).sum().backward()
    values = layer.weight.grad.clone()
    with HostRecord(CPU) as record:
        renew_gradients(layer)
        assert torch.equal(layer.weight.grad, values)
        record.begin()
        layer.zero_grad(set_to_none=True)
        kept = torch.empty(64 * 65, dtype=torch.float32)
    assert record.growth_bytes() == 0, "it took no more than the gradients' room"
    del kept


def test_off_the_cpu_it_records_nothing():
    with HostRecord(torch.device("cuda")) as record:
        record.begin()
        torch.empty(KIB)
    assert record.growth_bytes() is None


# --- what is read of the records


@dataclass
class Event:
    """As torch's profiler has them."""

    when: int
    size: int = 0
    called: str = "[memory]"
    device: object = torch.profiler.DeviceType.CPU

    def name(self):
        return self.called

    def start_ns(self):
        return self.when

    def nbytes(self):
        return self.size

    def device_type(self):
        return self.device


def test_events_count_from_the_begin_in_the_order_of_time():
    events = [
        Event(9, -4),
        Event(5, called="kdbench.step"),
        Event(7, 20),
        Event(1, 100),  # before the step
        Event(8, 3, called="aten::empty"),  # no memory event
        Event(8, 7, device=torch.profiler.DeviceType.CUDA),
        Event(7, -1),  # of the same nanosecond: in the order told
    ]
    assert host_changes(events) == [20, -1, -4]


@given(st.lists(st.integers(-1000, 1000)))
def test_the_growth_is_the_highest_of_all_sums(changes):
    sums = [sum(changes[:end]) for end in range(len(changes) + 1)]
    assert peak_growth(changes) == max(sums)


# A snapshot as torch documents it (torch.cuda.memory._snapshot, `Snapshot` in its source).
def segment(device, *blocks):
    listed, address = [], 4096 * (device + 1)
    for state, requested in blocks:
        size = -(-requested // 512) * 512
        found = {"address": address, "size": size, "requested_size": requested, "state": state}
        listed.append(found)
        address += size
    return {"device": device, "address": 4096 * (device + 1), "blocks": listed}


def test_live_blocks_of_a_card():
    snapshot = {
        "segments": [
            segment(0, ("active_allocated", 100), ("inactive", 512), ("active_allocated", 700)),
            segment(1, ("active_allocated", 9)),
            segment(0, ("active_pending_free", 64)),  # given back already
        ],
        "device_traces": [[], []],
    }
    assert cuda_blocks(snapshot, 0) == {4096: 100, 4096 + 1024: 700}
    assert cuda_blocks(snapshot, 1) == {8192: 9}


def entry(action, addr, size):
    return {"action": action, "addr": addr, "size": size, "stream": 0, "frames": []}


def test_a_cards_history_is_replayed_to_its_peak():
    trace = [
        entry("snapshot", 0, 0),
        entry("free_requested", 1, 100),
        entry("free_completed", 1, 100),
        entry("segment_alloc", 512, 2 << 20),
        entry("alloc", 1, 300),  # an address is used again
        entry("alloc", 2, 50),
        entry("free_requested", 2, 50),
        entry("free_completed", 2, 50),
        entry("segment_free", 512, 2 << 20),
        entry("alloc", 3, 10),
    ]
    assert cuda_peak({1: 100, 9: 7}, trace) == 7 + 300 + 50
    assert cuda_peak({9: 7}, []) == 7


def test_a_history_that_is_not_whole_is_an_error():
    with pytest.raises(ValueError, match="never live: 0x10"):
        cuda_peak({}, [entry("free_requested", 16, 8)])


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4096)), max_size=60))
def test_a_replay_comes_to_what_was_asked_for(moves):
    """Blocks come and go at nine addresses; the peak is that of a plain count."""
    live, trace, most = {}, [], 0
    for address, size in moves:
        if address in live:
            trace.append(entry("free_requested", address, live.pop(address)))
        else:
            live[address] = size
            trace.append(entry("alloc", address, size))
        most = max(most, sum(live.values()))
    assert cuda_peak({}, trace) == most
