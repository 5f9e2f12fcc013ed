"""The ledger against torch's own records, and what reads those."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from kdbench.worker.probes.account import account_step, profiled_peak
from kdbench.worker.probes.oracle import (
    Growth,
    HostRecord,
    growth_of,
    host_changes,
    renew_gradients,
)
from tests.support.cuda_histories import cuda_blocks, cuda_peak
from tests.support.models import CPU, tiny_session

KIB = 1024
METHODS = ("teacher-kd", "embed-kd", "cached-kd", "student-only")
# How far apart they may be, but for what operations take within themselves: as much as the
# processor's kernels ask for. On every processor the rest is a few scalars, and what is told here.
SETTINGS = {
    (): KIB,
    ('training.attention="sdpa"',): KIB,
    ("students.small.attention_dropout=0.0", 'training.attention="sdpa"'): KIB,
    ("students.small.depth=5", "students.small.patch_size=1"): KIB,
    # a checkpoint keeps the random numbers' state (5 KB) of each of two blocks past dispatch
    ("training.checkpointing=true",): 12 * KIB,
    ('training.precision="bf16"',): KIB,
    ('training.precision="fp16"',): KIB,
}
# A convolution of doubles, which no processor has other kernels for: torch copies each image's
# patches into columns, multiplies, and lets the columns go.
CHANNELS, SIDE, KERNEL, BATCH, DOUBLE = 3, 20, 5, 7, 8
COLUMNS = BATCH * CHANNELS * KERNEL**2 * SIDE**2 * DOUBLE
CONVOLVED = BATCH * SIDE**2 * DOUBLE


def beyond(account):
    """What the second source counts beyond the ledger, scratch left out."""
    return account.second_peak_bytes - account.scratch_bytes - account.ledger.peak_bytes()


def convolution():
    images = torch.ones(BATCH, CHANNELS, SIDE, SIDE, dtype=torch.float64)
    kernel = torch.ones(1, CHANNELS, KERNEL, KERNEL, dtype=torch.float64)
    return lambda: torch.nn.functional.conv2d(images, kernel, padding=KERNEL // 2)


def accounted(folder, method, settings, steps=1):
    session = tiny_session(folder, method, *settings)
    draws = session.draws(0)
    for _ in range(steps):
        session.timed_step(next(draws))
    return session, account_step(session, next(draws)), draws


@pytest.mark.parametrize(("settings", "apart"), SETTINGS.items(), ids=str)
def test_the_ledger_agrees_with_torchs_profiler(tmp_path, settings, apart):
    _, account, _ = accounted(tmp_path, "embed-kd", settings)
    assert 0 <= beyond(account) <= apart
    assert account.scratch_bytes >= 0


@pytest.mark.parametrize("method", METHODS)
def test_it_does_for_all_methods_and_in_the_first_step(tmp_path, method):
    for steps in (0, 2):  # the first has no gradients and no optimizer state yet
        _, account, _ = accounted(tmp_path, method, (), steps)
        assert 0 <= beyond(account) <= KIB


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
    assert beyond(account) == pytest.approx(10 * KIB * KIB, abs=KIB)


def test_scratch_within_an_operation_is_told_apart_wherever_the_peak_is(tmp_path):
    """What a kernel takes and gives back is scratch, no more: the rest agrees to the byte."""
    session = tiny_session(tmp_path, "student-only")
    session.timed_step(next(session.draws(0)))
    convolve, forward = convolution(), session.forward

    def step(*, convolving):
        def forward_after(batch, mark):
            if convolving:
                convolve()
            return forward(batch, mark)

        return forward_after

    # It holds what is convolved as well: a step's own tensors are counted.
    session.forward = step(convolving=False)
    plain = account_step(session, next(session.draws(1)))
    session.forward = step(convolving=True)
    account = account_step(session, next(session.draws(1)))
    # The ledger's peak is backward's, as before; the profiler's is now the convolution's.
    assert account.ledger.peak_bytes() == plain.ledger.peak_bytes()
    assert beyond(account) == beyond(plain)
    assert COLUMNS - plain.ledger.peak_bytes() < account.scratch_bytes < COLUMNS


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
    assert record.growth().peak_bytes == 0, "it took no more than the gradients' room"
    del kept


def test_the_scratch_of_an_operation_to_the_byte():
    convolve, kept = convolution(), []
    with HostRecord(CPU) as record:
        record.begin()
        with record.operations():
            kept.append(convolve())
            kept.append(torch.empty(KIB, dtype=torch.uint8))
    assert record.growth() == Growth(CONVOLVED + COLUMNS, CONVOLVED + KIB)
    assert record.growth().scratch_bytes == COLUMNS - KIB


def test_without_marks_of_operations_nothing_is_scratch():
    convolve = convolution()
    with HostRecord(CPU) as record:
        record.begin()
        convolve()
    assert record.growth() == Growth(CONVOLVED + COLUMNS, CONVOLVED + COLUMNS)


def test_off_the_cpu_it_records_nothing():
    with HostRecord(torch.device("cuda")) as record:
        record.begin()
        with record.operations():
            torch.empty(KIB)
    assert record.growth() is None


# --- what is read of the records


@dataclass
class Event:
    """As torch's profiler has them."""

    when: int
    size: int = 0
    called: str = "[memory]"
    device: object = torch.profiler.DeviceType.CPU
    end: int = 0

    def name(self):
        return self.called

    def start_ns(self):
        return self.when

    def end_ns(self):
        return self.end

    def nbytes(self):
        return self.size

    def device_type(self):
        return self.device


def operation(start, end):
    return Event(start, called="kdbench.operation", end=end)


BEGIN = Event(5, called="kdbench.step", end=5)


def test_events_count_from_the_begin_in_the_order_of_time():
    events = [
        Event(9, -4),
        BEGIN,
        Event(7, 20),
        Event(1, 100),  # before the step
        Event(8, 3, called="aten::empty", end=9),  # no memory event
        Event(8, 7, device=torch.profiler.DeviceType.CUDA),
        Event(7, -1),  # of the same nanosecond: in the order told
    ]
    assert host_changes(events) == [(20, None), (-1, None), (-4, None)]


def test_an_event_is_of_the_operation_that_runs():
    events = [
        operation(20, 29),
        Event(15, 1),
        BEGIN,
        operation(10, 12),  # before it in time, told later
        Event(12, 2),  # of a clock with coarse ticks: still within
        Event(20, 3),
        Event(29, -3),
        Event(6, 4),
        Event(30, -1),
    ]
    assert host_changes(events) == [(4, None), (2, 0), (1, None), (3, 1), (-3, 1), (-1, None)]


def test_a_product_that_takes_tiles_of_its_own_moves_no_more_than_scratch():
    """A step in bf16 as a processor with AMX has it: 309,828 bytes against a ledger's 208,724."""
    # held before, two scalars past dispatch, the product's result, the most that it grew to later
    before, scalars, result, later = 180_000, 32, 12_800, 28_724
    tiles = 309_828 - before - scalars - result
    events = [
        BEGIN,
        Event(9, scalars),
        operation(10, 20),
        Event(11, result),
        Event(12, tiles),
        Event(19, -tiles),
        operation(30, 40),
        Event(31, later - result),
        operation(50, 60),
        Event(51, 4096),  # packed weights, kept by whoever packed them
        Event(52, -later),
    ]
    growth = growth_of(host_changes(events))
    assert before + growth.peak_bytes == 309_828
    assert before + growth.between_bytes - scalars == 208_724
    assert growth.scratch_bytes == 309_828 - 208_724 - scalars


def test_what_an_operation_leaves_behind_is_no_scratch():
    kept = growth_of([(100, 0), (40, 0), (-100, 0), (30, None)])
    assert kept == Growth(peak_bytes=140, between_bytes=70)
    assert growth_of([(10, None), (-10, None), (8, 0), (8, 1)]) == Growth(16, 16)
    assert growth_of([]) == Growth(0, 0)
    assert growth_of([(-8, 0), (6, 1), (-6, 1)]) == Growth(0, 0)


@given(st.lists(st.tuples(st.integers(-1000, 1000), st.integers(0, 3) | st.none())))
def test_the_growth_is_the_highest_of_all_sums(changes):
    sums = [sum(size for size, _ in changes[:end]) for end in range(len(changes) + 1)]
    ended = [*(operation for _, operation in changes[1:]), None]
    between = [
        after
        for after, (_, operation), then in zip(sums[1:], changes, ended, strict=False)
        if operation is None or operation != then
    ]
    assert growth_of(changes) == Growth(max(sums), max([0, *between]))


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
