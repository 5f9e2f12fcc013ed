"""Streamed images: the same to the bit as kept ones, and no process left behind."""

import os
import signal
import subprocess
import sys
import threading
import time

import datasets
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import kdbench.worker.data.dataset as data_module
import kdbench.worker.data.images as stream_module
from kdbench.common.errors import InputError, WorkerError
from kdbench.common.lifetime import STOP_SIGNALS, ignore_signals
from kdbench.worker.data import decoder_processes
from kdbench.worker.data.augment import epoch_draws, make_batch
from kdbench.worker.data.dataset import load_data
from kdbench.worker.out_of_memory import child_died, is_shortage
from kdbench.worker.probes.account import account_step
from kdbench.worker.probes.memory import Probes
from kdbench.worker.training.embeddings import plan_class_embeddings, plan_image_embeddings
from kdbench.worker.training.precompute import compute
from kdbench.worker.training.session import build_session
from kdbench.worker.training.train import evaluate
from tests.support import REPOSITORY
from tests.support.image_sets import image_run, write_pictures, write_saved

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def both_storages(tmp_path, folder, *assignments):
    for storage in ("device", "stream"):
        cell = image_run(tmp_path, folder, f'data.storage="{storage}"', *assignments).cell
        data = load_data(cell, device=CPU)
        assert data.storage == storage
        yield cell, data


def epoch(data, **options):
    """All that an epoch's steps see."""
    draws = epoch_draws(data, device=CPU, **{"batch_size": 5, "flip": True} | options)
    batches = [make_batch(data.train, draw, image_size=8, teacher_size=16) for draw in draws]
    return [tensor for batch in batches for tensor in batch[:3]]


@pytest.mark.parametrize("write", [write_saved, write_pictures])
@pytest.mark.parametrize("crop", [None, (0.2, 1.0)])
def test_streamed_batches_are_the_kept_ones_to_the_bit(tmp_path, write, crop):
    (_, kept), (_, streamed) = both_storages(tmp_path, write(tmp_path / "set"))
    seen = {}
    for number in (0, 1):
        options = {"seed": 3, "epoch": number, "crop": crop}
        seen[number] = epoch(kept, **options)
        assert len(seen[number]) == 2 * 3
        for one, other in zip(seen[number], epoch(streamed, **options), strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(seen[0][0], seen[1][0])
    for rows in (None, torch.tensor([11, 0, 0, 7, 3])):
        pairs = zip(kept.train.batches(3, rows), streamed.train.batches(3, rows), strict=True)
        for one, other in pairs:
            assert torch.equal(one.pixels, other.pixels)
            assert torch.equal(one.labels, other.labels)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp("pictures"))


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    workers=st.integers(1, 5),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 2**31 - 1),
    skipped=st.integers(0, 3),
)
def test_any_number_of_workers_and_any_start_give_the_same(
    tmp_path, pictures, workers, batch_size, seed, skipped
):
    (_, kept), (_, streamed) = both_storages(tmp_path, pictures, f"data.workers={workers}")
    options = {"batch_size": batch_size, "seed": seed, "epoch": 0, "flip": True, "device": CPU}
    pairs = list(zip(epoch_draws(kept, **options), epoch_draws(streamed, **options), strict=True))
    for one, other in pairs[skipped:]:
        assert torch.equal(
            make_batch(kept.train, one, image_size=8, teacher_size=None).images,
            make_batch(streamed.train, other, image_size=8, teacher_size=None).images,
        )


def test_a_whole_training_is_the_same_to_the_bit(tmp_path, pictures):
    """With dropout: streaming takes nothing from torch's own random numbers."""
    seen = []
    for cell, data in both_storages(tmp_path, pictures, "training.batch_size=4"):
        session = build_session(
            cell,
            device=CPU,
            seed=1,
            data=data,
            teacher=None,
            embeddings=torch.ones(5, 24),
            probes=Probes(CPU),
        )
        losses = []
        for number in range(2):
            losses += [float(session.step(draw)[0].loss) for draw in session.draws(number)]
            tested = evaluate(session)
            losses += [tested["test_loss"], tested["test_accuracy"]]
        account = account_step(session, next(session.draws(2)))
        seen.append([*losses, account.row["loss"]])
    assert seen[0] == seen[1]
    assert len(set(seen[0])) > 6


@pytest.mark.parametrize("plan", [plan_class_embeddings, plan_image_embeddings])
def test_embeddings_are_the_same_to_the_bit(plan, tmp_path, pictures):
    def teacher(images):
        return images.flatten(1)[:, ::32].contiguous()

    found = []
    for cell, data in both_storages(tmp_path, pictures):
        module = torch.nn.Module()
        module.forward = teacher
        seed = {"seed": 0} if plan is plan_class_embeddings else {}
        made = plan(cell, data, device=CPU, **seed)
        found.append(compute(made, module, budget=None, probes=Probes(CPU)).embeddings)
    assert torch.equal(*found)


def test_draws_may_be_skipped_in_the_middle(tmp_path, pictures):
    (_, kept), (_, streamed) = both_storages(tmp_path, pictures)
    options = {"batch_size": 2, "flip": False, "seed": 0, "epoch": 0, "device": CPU}
    wanted, found = (list(epoch_draws(data, **options)) for data in (kept, streamed))
    for number in (0, 3, 5):
        one = make_batch(kept.train, wanted[number], image_size=8, teacher_size=None)
        other = make_batch(streamed.train, found[number], image_size=8, teacher_size=None)
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


def test_draws_cannot_be_used_twice(tmp_path, pictures):
    *_, (_, streamed) = both_storages(tmp_path, pictures)
    draws = list(epoch_draws(streamed, batch_size=4, flip=False, seed=0, epoch=0, device=CPU))
    make_batch(streamed.train, draws[1], image_size=8, teacher_size=None)
    for draw in draws[:2]:
        with pytest.raises(RuntimeError, match=r"fetched already"):
            make_batch(streamed.train, draw, image_size=8, teacher_size=None)


def test_only_labels_are_kept(tmp_path, pictures):
    (_, kept), (_, streamed) = both_storages(tmp_path, pictures)
    assert sum(tensor.nbytes for tensor in streamed.tensors()) == 18 * 8
    assert sum(tensor.nbytes for tensor in kept.tensors()) == 18 * (8 + 3 * 8 * 8)


@pytest.mark.parametrize(("free", "storage"), [(4 * 3456, "device"), (4 * 3456 - 1, "stream")])
def test_auto_streams_what_takes_more_than_a_quarter(
    tmp_path, pictures, monkeypatch, free, storage
):
    monkeypatch.setattr(data_module, "free_bytes", lambda device: free)  # 18 * 3 * 8 * 8 = 3456
    assert load_data(image_run(tmp_path, pictures).cell, device=CPU).storage == storage


def test_free_memory_on_the_cpu_is_what_the_tightest_limit_leaves():
    assert 0 < data_module.free_bytes(CPU) <= psutil.virtual_memory().total


def test_many_pictures_are_decoded_by_processes(tmp_path, pictures, monkeypatch):
    alone = load_data(image_run(tmp_path, pictures).cell, device=CPU)
    monkeypatch.setattr(stream_module, "_FEW", 1)
    shared = load_data(image_run(tmp_path, pictures).cell, device=CPU)
    assert torch.equal(alone.train.pixels, shared.train.pixels)


def test_a_picture_that_breaks_during_the_training(tmp_path):
    folder = write_pictures(tmp_path / "set")
    *_, (_, streamed) = both_storages(tmp_path, folder)
    (folder / "train" / "a" / "00.png").write_bytes(b"gone")
    with pytest.raises(InputError, match=r"a/00.png: data.path: expected a whole picture"):
        epoch(streamed, seed=0, epoch=0, batch_size=12)


def test_a_process_that_dies_is_told(tmp_path, pictures, monkeypatch):
    *_, (_, streamed) = both_storages(tmp_path, pictures)
    monkeypatch.setattr(stream_module, "decode", lambda *_args, **_options: os._exit(9))
    with pytest.raises(WorkerError, match=r"a process that decodes images died.*data.workers"):
        epoch(streamed, seed=0, epoch=0)


def test_a_process_that_is_killed_is_told_at_once(tmp_path, pictures):
    *_, (_, streamed) = both_storages(tmp_path, pictures)
    others = {child.pid for child in children()}
    batches = streamed.train.batches(1)
    next(batches)
    decoder = next(child for child in children() if child.pid not in others)
    decoder.kill()
    with pytest.raises(WorkerError, match=r"was killed by SIGKILL.*data.workers") as caught:
        list(batches)
    assert child_died(caught.value)
    assert {child.pid for child in children()} <= others


@pytest.mark.parametrize("name", STOP_SIGNALS)
def test_what_ends_a_run_is_for_the_runner_to_answer(tmp_path, pictures, name):
    """A scheduler signals each process of a job."""
    *_, (_, streamed) = both_storages(tmp_path, pictures)
    others = {child.pid for child in children()}
    batches = streamed.train.batches(1)
    next(batches)
    for child in children():
        if child.pid not in others:
            child.send_signal(signal.Signals[name])
    assert len(list(batches)) == 11


def test_a_signal_that_comes_while_a_process_starts(tmp_path, pictures, monkeypatch):
    def late(names):
        time.sleep(0.3)
        ignore_signals(names)

    monkeypatch.setattr(decoder_processes, "ignore_signals", late)
    *_, (_, streamed) = both_storages(tmp_path, pictures)
    others = {child.pid for child in children()}
    began = threading.Thread(target=signal_new_children, args=(others,), daemon=True)
    began.start()
    assert len(list(streamed.train.batches(1))) == 12
    began.join()


def signal_new_children(others):
    while not (new := [child for child in children() if child.pid not in others]):
        time.sleep(0.001)
    new[0].send_signal(signal.SIGTERM)


def test_what_a_process_cannot_do_is_told(tmp_path, pictures, monkeypatch):
    def short(*_args, **_options):
        raise MemoryError("no room for a picture")

    *_, (_, streamed) = both_storages(tmp_path, pictures)
    monkeypatch.setattr(stream_module, "decode", short)
    with pytest.raises(RuntimeError, match=r"MemoryError: no room for a picture") as caught:
        epoch(streamed, seed=0, epoch=0)
    assert is_shortage(caught.value)


def test_processes_that_are_started_afresh(tmp_path, pictures, monkeypatch):
    """As on macOS, which does not survive a fork."""
    (_, kept), (_, streamed) = both_storages(tmp_path, pictures, "data.workers=1")
    monkeypatch.setattr(decoder_processes.platform, "system", lambda: "Darwin")
    pairs = zip(kept.train.batches(4), streamed.train.batches(4), strict=True)
    assert all(torch.equal(one.pixels, other.pixels) for one, other in pairs)


WITHOUT = """
import sys
from pathlib import Path
import torch
from kdbench.worker.data.dataset import load_data
from tests.support.image_sets import image_run
run = image_run(Path(sys.argv[1]), sys.argv[2], 'data.storage="stream"', "data.image_size=256")
seen = load_data(run.cell, device=torch.device("cpu")).train.batches(4)
print(sum(len(batch.labels) for batch in seen))
"""


def test_neither_room_nor_semaphores_of_shared_memory_are_needed(tmp_path, pictures):
    """In a container there are 64 MB of it, and in some sandboxes none."""
    alone = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    sets = (tmp_path, pictures)
    unwritable = "mount -t tmpfs -o ro tmpfs /dev/shm"
    try:
        subprocess.run([*alone, unwritable], check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no mount of its own is allowed here")
    done = subprocess.run(
        [*alone, f'{unwritable} && exec "$0" "$@"', sys.executable, "-c", WITHOUT, *map(str, sets)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("12\n", 0), done.stderr


def children():
    return psutil.Process().children(recursive=True)


def test_processes_end_with_their_pass(tmp_path, pictures):
    before = {child.pid for child in children()}
    *_, (_, streamed) = both_storages(tmp_path, pictures)
    batches = streamed.train.batches(2)
    next(batches)
    assert {child.pid for child in children()} - before
    batches.close()
    epoch(streamed, seed=0, epoch=0)
    assert {child.pid for child in children()} <= before


KILLED = """
import os, sys, time
from pathlib import Path
import torch
from kdbench.worker.data.dataset import load_data
from tests.support.image_sets import image_run
run = image_run(Path(sys.argv[1]), sys.argv[2], 'data.storage="stream"')
batches = load_data(run.cell, device=torch.device("cpu")).train.batches(1)
next(batches)
print("ready", flush=True)
time.sleep(600)
"""


def alive(child):
    try:
        return child.is_running() and child.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends them on Linux")
def test_processes_die_with_a_worker_that_is_killed(tmp_path, pictures):
    worker = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), str(pictures)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    try:
        assert worker.stdout.readline() == b"ready\n"
        decoders = psutil.Process(worker.pid).children(recursive=True)
        assert len(decoders) >= 2
    finally:
        worker.kill()
        worker.wait()
        worker.stdout.close()
    deadline = time.monotonic() + 240
    while any(alive(child) for child in decoders):
        assert time.monotonic() < deadline, "a process outlived the one that started it"
        time.sleep(0.02)
