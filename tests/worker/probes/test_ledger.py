"""The ledger counts what it is given, to the byte."""

import gc

import pytest
import torch
from torch import nn

from kdbench.worker.probes.account import account_step
from kdbench.worker.probes.ledger import Ledger
from tests.support.models import CPU, tiny_session

KIB = 1024


def test_a_known_profile():
    ledger = Ledger(CPU)
    with ledger:
        first = torch.empty(100 * KIB, dtype=torch.uint8)
        second = torch.empty(50 * KIB, dtype=torch.uint8)
        del second
        third = torch.empty(30 * KIB, dtype=torch.uint8)
    assert ledger.peak_bytes() == 150 * KIB
    del first, third


def test_views_and_writes_in_place_are_not_counted_again():
    ledger = Ledger(CPU)
    with ledger:
        block = torch.zeros(64, 64)
        kept = [block.T, block[3], block.view(-1), block.add_(1), block.detach()]
    assert ledger.peak_bytes() == 64 * 64 * 4
    del kept


def test_memory_counts_until_the_last_view_is_gone():
    ledger = Ledger(CPU)
    with ledger:
        view = torch.zeros(1000)[:1]
        torch.zeros(500)
        del view
        torch.zeros(1200)
    # 4000 + 2000 while the view lived; 4800 afterwards
    assert ledger.peak_bytes() == 6000


def test_a_storage_that_grows_in_place():
    ledger = Ledger(CPU)
    with ledger:
        block = torch.empty(10)
        block.resize_(1000)
    assert ledger.peak_bytes() == 4000


def test_what_autograd_keeps_is_live():
    layer = nn.Linear(8, 8)
    ledger = Ledger(CPU)
    ledger.register_module(layer, "parameters", prefix="layer")
    with ledger:
        ledger.mark("forward")
        result = layer(torch.ones(16, 8)).exp()  # exp keeps its result
        kept = result.sum()
        del result
    live = {(s.category, s.module): s.size for s in ledger.shares()}
    assert live["parameters", "layer"] == (64 + 8) * 4
    assert kept.requires_grad


def test_the_peak_is_split_without_rest(tmp_path):
    session = tiny_session(tmp_path, "teacher-kd")
    session.timed_step(next(session.draws(0)))
    ledger = account_step(session, next(session.draws(1))).ledger
    shares = ledger.shares()
    assert sum(share.size for share in shares) == ledger.peak_bytes()
    sizes = {}
    for share in shares:
        sizes[share.category] = sizes.get(share.category, 0) + share.size
    parameters = sum(p.nbytes for p in session.student.parameters())
    assert sizes["parameters"] == parameters
    # AdamW keeps two moments per parameter, and a float32 step count per parameter tensor
    tensors = len(list(session.student.parameters()))
    assert sizes["optimizer_state"] == 2 * parameters + 4 * tensors
    assert sizes["gradients"] <= parameters
    assert sizes["teacher"] >= sum(p.nbytes for p in session.teacher.parameters())
    assert sizes["activations"] > 0
    assert sizes["inputs"] >= sum(t.nbytes for t in session.data.tensors())


def test_activations_know_their_module(tmp_path):
    session = tiny_session(tmp_path, "embed-kd")
    session.timed_step(next(session.draws(0)))
    ledger = account_step(session, next(session.draws(1))).ledger
    modules = {share.module for share in ledger.shares() if share.category == "activations"}
    assert {f"student.blocks.{n}.attention" for n in range(2)} <= modules


def test_embed_kd_holds_no_teacher_in_its_step(tmp_path):
    session = tiny_session(tmp_path, "embed-kd")
    session.timed_step(next(session.draws(0)))
    ledger = account_step(session, next(session.draws(1))).ledger
    held = sum(s.size for s in ledger.shares() if s.category == "teacher")
    assert held == session.embeddings.nbytes


def test_more_batch_more_activations_same_parameters(tmp_path):
    sizes = []
    for batch in (8, 16):
        session = tiny_session(tmp_path, "student-only", f"training.batch_size={batch}")
        session.timed_step(next(session.draws(0)))
        ledger = account_step(session, next(session.draws(1))).ledger
        sizes.append(
            {
                c: sum(s.size for s in ledger.shares() if s.category == c)
                for c in ("activations", "parameters")
            }
        )
    assert sizes[0]["parameters"] == sizes[1]["parameters"]
    assert sizes[1]["activations"] > 1.8 * sizes[0]["activations"]


def test_the_step_under_the_ledger_computes_the_same(tmp_path):
    losses = []
    for accounted in (False, True):
        session = tiny_session(tmp_path, "embed-kd")
        draw = next(session.draws(0))
        row = account_step(session, draw).row if accounted else session.timed_step(draw)[0]
        losses.append(row["loss"])
    assert losses[0] == losses[1]


def test_nothing_stays_hooked():
    layer, ledger = nn.Linear(2, 2), Ledger(CPU)
    with pytest.raises(RuntimeError, match="shapes"), ledger:
        layer(torch.ones(1, 3))  # fails in the middle of a module
    before = ledger.peak_bytes()
    layer(torch.ones(1000, 2))
    assert ledger.peak_bytes() == before
    gc.collect()


# --- checkpointing

# long enough for activations to weigh more than what the optimizer holds
DEEP = ("students.small.depth=5", "students.small.patch_size=1")


def accounted(folder, *assignments):
    session = tiny_session(folder, "student-only", *DEEP, *assignments)
    session.timed_step(next(session.draws(0)))
    return account_step(session, next(session.draws(1))).ledger


def test_checkpointing_lowers_the_peak_which_is_split_without_rest(tmp_path):
    plain = accounted(tmp_path)
    checkpointed = accounted(tmp_path, "training.checkpointing=true")
    assert checkpointed.peak_bytes() < 0.6 * plain.peak_bytes()
    for ledger in (plain, checkpointed):
        assert sum(share.size for share in ledger.shares()) == ledger.peak_bytes()


def test_what_is_computed_again_in_backward_is_an_activation(tmp_path):
    shares = accounted(tmp_path, "training.checkpointing=true").shares()
    made = {share.category: 0 for share in shares}
    for share in shares:
        made[share.category] += share.size
    # of one block alone, the one that the peak is in
    within = {
        share.module.split(".")[2]
        for share in shares
        if share.category == "activations" and ".attention" in (share.module or "")
    }
    assert len(within) == 1, within
    assert made["activations"] > 10 * made["inputs"]
    assert not [s for s in shares if s.category == "workspace" and s.module is not None]
