"""Checkpoints as files: stopped anywhere, damaged, forged, of a full disk; in this process."""

import errno
import json
import math
import os
import pickle
import random
import shutil
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import kdbench.worker.checkpoints.files as checkpoint_module
import kdbench.worker.probes.suspension as suspension_module
import kdbench.worker.training.train as train_module
from kdbench.spec.settings import Training
from kdbench.worker.checkpoints.files import read_checkpoint, write_checkpoint
from kdbench.worker.checkpoints.history import History
from kdbench.worker.checkpoints.resume import Checkpoints
from kdbench.worker.data.images import Streamed
from kdbench.worker.events import Events
from kdbench.worker.training.session import Session
from kdbench.worker.training.train import learning_rate
from tests.support.consistency import check_results
from tests.support.image_sets import write_pictures
from tests.support.trainings import KEY, attempt, cell_of, result_of, training_run
from tests.worker.training.test_train import digits_text

EVERY_STEP, WHOLE_EPOCHS = (f"budget.checkpoint_seconds={value}" for value in ("1e-9", "1e6"))
EPOCHS, STEPS = 3, 20


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a run of the digits by its method."""
    matrix = tmp_path_factory.mktemp("digits") / "tiny.toml"
    matrix.write_text(digits_text())

    def make(method, *assignments):
        fixed = (f"training.epochs={EPOCHS}", 'teachers.dwarf.weights="random"')
        return training_run(matrix, method, *fixed, *assignments)

    return make


@pytest.fixture(scope="module")
def unstopped(made, tmp_path_factory):
    """What comes of a training that nobody stops, by its method."""
    known = {}

    def train(method):
        if method not in known:
            root = tmp_path_factory.mktemp("unstopped")
            attempt(made(method), root)
            assert check_results(root) == 1
            known[method] = result_of(root)
        return known[method]

    return train


def notes(told):
    return [event["text"] for event in told if event["event"] == "note"]


@pytest.mark.parametrize("often", [EVERY_STEP, WHOLE_EPOCHS], ids=["steps", "epochs"])
@pytest.mark.parametrize("method", ["embed-kd", "student-only"])
def test_stopped_anywhere_and_often(method, often, made, unstopped, tmp_path):
    draw, run, done = random.Random(f"{method} {often}"), made(method, often), 0
    for _ in range(4):
        stop = draw.randint(0, 24)  # 0: before there is anything new to go on from
        told = attempt(run, tmp_path, stop_after=stop)
        assert notes(told) == []
        check_results(tmp_path)
        resumed = [event["steps"] for event in told if event["event"] == "resumed"]
        assert resumed == ([done] if done else [])
        done += stop if often == EVERY_STEP else (done + stop) // STEPS * STEPS - done
        if done >= EPOCHS * STEPS - 24:
            break
    attempt(run, tmp_path)
    assert check_results(tmp_path) == 1
    assert result_of(tmp_path) == unstopped(method)
    cell = cell_of(tmp_path)
    assert (cell["status"], cell["steps_resumed"]) == ("ok", done)
    assert cell["steps_measured"] == EPOCHS * STEPS


@pytest.mark.parametrize("method", ["teacher-kd", "cached-kd"])
def test_the_scale_of_fp16_is_gone_on_with(method, made, tmp_path):
    run = made(method, 'training.precision="fp16"', "training.epochs=1", EVERY_STEP)
    attempt(run, tmp_path / "whole")
    attempt(run, tmp_path / "stopped", stop_after=11)
    header, _ = read_checkpoint(tmp_path / "stopped/checkpoints" / KEY / "last.safetensors")
    # either an overflow has halved the scale, or there were as many steps without one
    assert header.scaler["scale"] < 2**16 or header.scaler["_growth_tracker"] == 11
    told = attempt(run, tmp_path / "stopped")
    assert [event["steps"] for event in told if event["event"] == "resumed"] == [11]
    assert result_of(tmp_path / "stopped") == result_of(tmp_path / "whole")


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": -1.0},
        {"scale": 1e300},
        {"growth_factor": 5.0},
        {"_growth_tracker": 10**9},
        {"more": 1.0},
        None,
    ],
)
def test_a_forged_scale_is_not_gone_on_with(changes, made, tmp_path):
    run = made("student-only", 'training.precision="fp16"', "training.epochs=1", EVERY_STEP)
    attempt(run, tmp_path, stop_after=1)
    path = tmp_path / "checkpoints" / KEY / "last.safetensors"
    header, _ = read_checkpoint(path)
    scaler = None if changes is None else header.scaler | changes
    forged(scaler=scaler)(path.parent)
    (told,) = notes(attempt(run, tmp_path, stop_after=0))
    assert ("another precision" if changes is None else "gradient scaler cannot be") in told


def test_a_training_that_was_done_is_not_done_again(made, unstopped, tmp_path):
    # the runner was killed between the worker's last word and the commit
    run = made("student-only")
    attempt(run, tmp_path)
    told = attempt(run, tmp_path)
    assert result_of(tmp_path) == unstopped("student-only")
    cell = cell_of(tmp_path)
    assert cell["steps_resumed"] == cell["steps_measured"] == EPOCHS * STEPS
    assert not any(
        event["event"] == "step" and event["attempt"] and event["phase"] == "train"
        for event in told
    )
    assert pd.isna(cell["energy_step_joules"])


def streamed_text(folder):
    """The digits' matrix, on pictures that are decoded again in each epoch."""
    text = digits_text().replace('"digits"', '"datasets"').replace("classes = 10", "classes = 5")
    for name, before, after in (("train", 640, 12), ("test", 200, 6)):
        text = text.replace(f"{name}_images = {before}", f"{name}_images = {after}")
    return text.replace("[data]", f'[data]\npath = "{folder}"\nstorage = "stream"\nworkers = 2')


def test_a_streamed_training_reads_nothing_of_what_it_has_behind_it(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
    matrix = tmp_path / "tiny.toml"
    matrix.write_text(streamed_text(write_pictures(tmp_path / "set")))
    run = training_run(matrix, "student-only", EVERY_STEP, "training.batch_size=2")
    attempt(run, tmp_path / "whole")
    asked, read = [], Streamed.read

    def recorded(images, batches):
        asked.append(len(batches))
        return read(images, batches)

    monkeypatch.setattr(Streamed, "read", recorded)
    attempt(run, tmp_path / "stopped", stop_after=4)
    assert asked == [6]
    asked.clear()
    attempt(run, tmp_path / "stopped")
    assert asked[0] == 2, "of six batches"
    assert result_of(tmp_path / "stopped") == result_of(tmp_path / "whole")
    check_results(tmp_path / "stopped")


def test_the_best_is_the_best_epochs(made, tmp_path, monkeypatch):
    accuracies, evaluate = iter([0.5, 0.75, 0.75]), train_module.evaluate
    monkeypatch.setattr(
        train_module, "evaluate", lambda s: evaluate(s) | {"test_accuracy": next(accuracies)}
    )
    attempt(made("student-only"), tmp_path)
    folder = tmp_path / "checkpoints" / KEY
    best, weights = read_checkpoint(folder / "best.safetensors")
    last, others = read_checkpoint(folder / "last.safetensors")
    assert (best.epoch, best.best_epoch, best.best_accuracy) == (2, 1, 0.75), "of equals the first"
    assert (last.epoch, last.best_epoch) == (3, 1)
    name = "student.classifier.weight"
    assert not torch.equal(weights[name], others[name])
    # the student's weights are under their plain names
    student = {n.removeprefix("student.") for n in load_file(folder / "best.safetensors")}
    assert {"classifier.weight", "blocks.0.attention.output.bias"} <= student


def test_a_stop_between_the_last_and_the_best(made, unstopped, tmp_path, monkeypatch):
    run, durably = made("student-only"), checkpoint_module.durably

    def cut(path, write):
        if path.name == "best.safetensors":
            raise KeyboardInterrupt
        durably(path, write)

    with monkeypatch.context() as patch:
        patch.setattr("kdbench.worker.checkpoints.resume.durably", cut)
        with pytest.raises(KeyboardInterrupt):
            attempt(run, tmp_path)
    assert not (tmp_path / "checkpoints" / KEY / "best.safetensors").exists()
    attempt(run, tmp_path, stop_after=0)
    best, _ = read_checkpoint(tmp_path / "checkpoints" / KEY / "best.safetensors")
    assert best.best_epoch == 0
    attempt(run, tmp_path)
    assert result_of(tmp_path) == unstopped("student-only")


@pytest.mark.parametrize("failing", ["history.jsonl", "last.safetensors"])
def test_a_full_disk_ends_no_training(failing, made, unstopped, tmp_path, monkeypatch):
    run, sync, full = made("student-only", EVERY_STEP), os.fsync, []

    def fsync(descriptor):
        name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if failing in name and 10 <= len(full) < 30:
            full.append(name)
            raise OSError(errno.ENOSPC, "No space left on device")
        if failing in name:
            full.append(name)
        sync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        told = attempt(run, tmp_path, stop_after=35)
    assert len(full) > 30
    (note,) = notes(told)
    assert "cannot write a checkpoint in" in note
    assert "No space left on device; the training goes on" in note
    told = attempt(run, tmp_path)
    assert notes(told) == []
    assert cell_of(tmp_path)["steps_resumed"] == 35
    assert result_of(tmp_path) == unstopped("student-only")
    check_results(tmp_path)


# --- what cannot be used


@pytest.fixture(scope="module")
def stopped(made, tmp_path_factory):
    """The checkpoints of a training that was stopped in its second epoch."""
    root = tmp_path_factory.mktemp("stopped")
    attempt(made("student-only", EVERY_STEP), root, stop_after=STEPS + 7)
    return root / "checkpoints" / KEY


def truncated(folder, share):
    path = folder / "last.safetensors"
    os.truncate(path, int(path.stat().st_size * share))


def flipped(folder, name, place):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[int(len(content) * place)] ^= 1
    path.write_bytes(content)


def no_json(folder):
    path = folder / "last.safetensors"
    tensors = load_file(path)
    digest = checkpoint_module._digest("[" * 100_000, tensors)
    save_file(tensors, path, {"kdbench": "[" * 100_000, "digest": digest})


def a_folder(folder):
    (folder / "last.safetensors").unlink()
    (folder / "last.safetensors").mkdir()


class Code:
    def __reduce__(self):
        return os._exit, (99,)


DAMAGED = {
    "cut in the middle": (lambda f: truncated(f, 0.5), "is damaged"),
    "cut in its header": (lambda f: truncated(f, 0.001), "is damaged"),
    "empty": (lambda f: truncated(f, 0), "is damaged"),
    "a bit of the weights": (lambda f: flipped(f, "last.safetensors", 0.7), "is damaged"),
    "a bit of the header": (lambda f: flipped(f, "last.safetensors", 0.004), "is damaged"),
    "a bit of the history": (lambda f: flipped(f, "history.jsonl", 0.5), "not what was written"),
    "history cut": (lambda f: os.truncate(f / "history.jsonl", 100), "not what was written"),
    "no history": (lambda f: (f / "history.jsonl").unlink(), "history cannot be read"),
    "a pickle": (
        lambda f: (f / "last.safetensors").write_bytes(pickle.dumps(Code())),
        "is damaged",
    ),
    "other weights": (
        lambda f: save_file({"a": torch.zeros(3)}, f / "last.safetensors"),
        "is damaged",
    ),
    "a header that is none": (no_json, "not one of this version"),
    "a link to nothing": (
        lambda f: (
            (f / "last.safetensors").unlink(),
            (f / "last.safetensors").symlink_to("nowhere"),
        ),
        "not a file",
    ),
}


def refused(said, told, folder):
    (note,) = notes(told)
    assert f"cannot go on from {folder / 'last.safetensors'}: " in note
    assert said in note
    assert note.endswith("the training starts anew")
    assert len(note) < 600
    assert "\n" not in note
    assert not any(event["event"] == "resumed" for event in told)


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_checkpoint(case, stopped, made, unstopped, tmp_path, capfd):
    damage, said = DAMAGED[case]
    folder = tmp_path / "checkpoints" / KEY
    shutil.copytree(stopped, folder)
    damage(folder)
    refused(said, attempt(made("student-only"), tmp_path), folder)
    assert "starts anew" in capfd.readouterr().err, "in the log as well"
    assert result_of(tmp_path) == unstopped("student-only")
    assert (cell_of(tmp_path)["status"], cell_of(tmp_path)["steps_resumed"]) == ("ok", 0)
    check_results(tmp_path)


def forged(**changes):
    """A checkpoint that is whole, but says something else."""

    def damage(folder):
        header, tensors = read_checkpoint(folder / "last.safetensors")
        write_checkpoint(folder / "last.safetensors", header.model_copy(update=changes), tensors)

    return damage


def tensors_forged(change):
    def damage(folder):
        header, tensors = read_checkpoint(folder / "last.safetensors")
        change(tensors)
        write_checkpoint(folder / "last.safetensors", header, tensors)

    return damage


def history_forged(change):
    """Other lines, counted and digested as they should be."""

    def damage(folder):
        path = folder / "history.jsonl"
        lines = path.read_text().splitlines(keepends=True)
        change(lines)
        path.unlink()
        history = History(path)
        history.extend(lines)
        forged(history_bytes=history.length, history_digest=history.digest)(folder)

    return damage


def first(kind, lines):
    return next(number for number, line in enumerate(lines) if f'"event": "{kind}"' in line)


def line_forged(kind="step", **changes):
    def change(lines):
        number = first(kind, lines)
        lines[number] = json.dumps(json.loads(lines[number]) | changes) + "\n"

    return history_forged(change)


CLASSIFIER = "student.classifier.weight"
MOMENT = "optimizer.classifier.weight.exp_avg"
FORGED = {
    "of another run": (forged(run_key="fedcba9876543210"), "of another run ('fedc"),
    "an epoch too many": (forged(epoch=EPOCHS + 1), "cannot be"),
    "a step too many": (forged(step=STEPS), "cannot be"),
    "more than is done": (forged(epoch=EPOCHS), "cannot be"),
    "more right than seen": (forged(right=10**6), "cannot be"),
    "a best to come": (forged(best_epoch=1), "cannot be"),
    "no best": (forged(best_epoch=None, best_accuracy=None), "cannot be"),
    "of fp16": (forged(scaler={"scale": 1.0}), "another precision"),
    "a step less than told": (forged(step=6, seen=6 * 32, right=0), "other steps"),
    "a longer history": (forged(history_bytes=2**62), "not what was written"),
    "weights of another shape": (
        tensors_forged(lambda t: t.update({CLASSIFIER: torch.zeros(10, 17)})),
        f"expected {CLASSIFIER} as torch.float32 of [10, 16], found torch.float32 of [10, 17]",
    ),
    "weights of another type": (
        tensors_forged(lambda t: t.update({CLASSIFIER: t[CLASSIFIER].double()})),
        "found torch.float64",
    ),
    "a weight less": (
        tensors_forged(lambda t: t.pop(CLASSIFIER)),
        f"it lacks the tensor {CLASSIFIER!r}",
    ),
    "a moment less": (tensors_forged(lambda t: t.pop(MOMENT)), f"it lacks the tensor {MOMENT!r}"),
    "a tensor more": (
        tensors_forged(lambda t: t.update({"student.more\nlines": torch.zeros(1)})),
        "a tensor too many: 'student.more",
    ),
    "no random state": (
        tensors_forged(lambda t: t.update({"random.cpu": torch.zeros_like(t["random.cpu"])})),
        "random generator's state",
    ),
    "a loss more": (
        tensors_forged(lambda t: t.update({"epoch.losses": torch.zeros(8).double()})),
        "epoch.losses",
    ),
    "a history with an end": (
        history_forged(lambda lines: lines.append('{"event": "end", "status": "ok"}\n')),
        "something else than rows",
    ),
    "a history of a step twice": (
        history_forged(lambda lines: lines.append(lines[-2])),
        "another order",
    ),
    "a history of a step less": (
        history_forged(lambda lines: lines.pop(first("step", lines))),
        "another order",
    ),
    "a history without a last line": (
        history_forged(lambda lines: lines.append('{"event": "phase"')),
        "something else than rows",
    ),
    "text for a number": (line_forged(loss="low"), "something else than rows"),
    "a number too large": (line_forged(started_ns=2**63), "something else than rows"),
    "a truth for a number": (line_forged(seconds=True), "something else than rows"),
    "of another phase": (line_forged(phase="measure"), "something else than rows"),
    "a list for a kind": (line_forged(event=["step"]), "something else than rows"),
    "of a later attempt": (line_forged(attempt=1), "something else than rows"),
    "no time": (line_forged(seconds=None), "something else than rows"),
    "text that is none": (line_forged("phase_start", phase="\udce9"), "something else than rows"),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_checkpoint(case, stopped, made, unstopped, tmp_path):
    damage, said = FORGED[case]
    folder = tmp_path / "checkpoints" / KEY
    shutil.copytree(stopped, folder)
    damage(folder)
    told = attempt(made("student-only"), tmp_path, stop_after=STEPS + 1)
    refused(said, told, folder)
    _, epochs, steps = result_of(tmp_path)
    _, others, wanted = unstopped("student-only")
    assert epochs["train_loss"] == others["train_loss"][:1], "nothing of it was used"
    assert steps["loss"] == wanted["loss"][: STEPS + 1]
    check_results(tmp_path)


def test_a_checkpoint_that_can_neither_be_read_nor_replaced(stopped, made, tmp_path):
    folder = tmp_path / "checkpoints" / KEY
    shutil.copytree(stopped, folder)
    a_folder(folder)
    first, second = notes(attempt(made("student-only"), tmp_path))
    assert "not a file" in first
    assert "cannot write a checkpoint" in second
    cell = cell_of(tmp_path)
    assert (cell["status"], cell["steps_resumed"]) == ("ok", 0)


def test_a_link_in_a_strangers_folder_is_not_written_through(made, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("mine")
    folder = tmp_path / "checkpoints" / KEY
    folder.mkdir(parents=True)
    (folder / "history.jsonl").symlink_to(precious)
    (note,) = notes(attempt(made("student-only"), tmp_path))
    assert "cannot write a checkpoint" in note
    assert precious.read_text() == "mine"


def test_what_a_killed_process_left_half_written_is_removed(stopped, made, tmp_path):
    folder = tmp_path / "checkpoints" / KEY
    shutil.copytree(stopped, folder)
    (folder / ".last.safetensors.4711").write_bytes(b"half")
    attempt(made("student-only", EVERY_STEP), tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("best.safetensors", "history.jsonl", "last.safetensors")
    ]
    assert cell_of(tmp_path)["steps_resumed"] == STEPS + 7


def test_what_was_told_after_the_checkpoint_is_cut_off(stopped, made, unstopped, tmp_path):
    # killed between the history's line and the checkpoint that was to count on it
    folder = tmp_path / "checkpoints" / KEY
    shutil.copytree(stopped, folder)
    for rest in ('{"event": "step", "phase": "train"}\n' * 99, '{"event": "st'):
        with (folder / "history.jsonl").open("a") as file:
            file.write(rest)
        told = attempt(made("student-only", EVERY_STEP), tmp_path, stop_after=2)
        assert notes(told) == []
        check_results(tmp_path)
    attempt(made("student-only", EVERY_STEP), tmp_path)
    assert result_of(tmp_path) == unstopped("student-only")
    assert cell_of(tmp_path)["steps_resumed"] == STEPS + 7 + 2 + 2


def test_a_checkpoint_costs_its_own_steps_alone(made, tmp_path, monkeypatch):
    # lines are written once: a history that were written anew each time would cost its square
    written, write = [], os.write

    def counted(descriptor, data):
        written.append(len(data))
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", counted)
    attempt(made("student-only", EVERY_STEP), tmp_path)
    assert sum(written) == (tmp_path / "checkpoints" / KEY / "history.jsonl").stat().st_size


def test_no_phase_has_the_writing_of_a_checkpoint_in_it(made, tmp_path, monkeypatch):
    write, spans = Checkpoints.write, []

    def timed(*arguments):
        begun = time.monotonic_ns()
        write(*arguments)
        spans.append((begun, time.monotonic_ns()))

    monkeypatch.setattr(Checkpoints, "write", timed)
    attempt(made("student-only", EVERY_STEP), tmp_path)
    assert len(spans) == EPOCHS * STEPS, "after every step but an epoch's last, and every epoch"
    phases = pd.read_parquet(tmp_path / "phases").to_dict("records")
    train = [phase for phase in phases if phase["phase"] == "train"]
    assert len(train) == EPOCHS * STEPS
    for phase in phases:
        end = phase["started_ns"] + phase["seconds"] * 1e9
        assert not any(phase["started_ns"] < b and a < end for a, b in spans), phase["phase"]


@pytest.mark.parametrize("epochs", [1, 2, 7, 200])
def test_the_learning_rate_depends_on_the_epoch_alone(epochs):
    training = Training(epochs=epochs, learning_rate=3e-3)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([parameter], 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for epoch in range(epochs):
        rate = learning_rate(training, epoch)
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        assert math.isclose(rate, learning_rate(training, epoch), rel_tol=0)
        optimizer.step()
        schedule.step()
    constant = training.model_copy(update={"loss": "published-code"})
    assert {learning_rate(constant, epoch) for epoch in range(epochs)} == {3e-3}


def test_suspended_steps_of_an_earlier_attempt_stay_so(made, tmp_path, monkeypatch):
    run, step, taken = made("student-only", EVERY_STEP), Session.step, []

    def stopped(session, *arguments):
        taken.append(None)
        suspension_module._continues.count += len(taken) in (4, STEPS + 5)
        return step(session, *arguments)

    monkeypatch.setattr(Session, "step", stopped)
    attempt(run, tmp_path, stop_after=9)
    attempt(run, tmp_path)
    check_results(tmp_path)
    cell, steps = cell_of(tmp_path), pd.read_parquet(tmp_path / "steps")
    lost = steps[steps["suspended"]]
    # the step in which it was stopped for good was taken twice, and told once
    assert lost[["attempt", "epoch", "step"]].to_numpy().tolist() == [[0, 0, 3], [1, 1, 3]]
    assert (cell["suspended_steps"], cell["steps_resumed"]) == (2, 9)
    assert cell["steps_measured"] == EPOCHS * STEPS - 2
    assert cell["epoch_seconds_kind"] == "measured", "by the last epoch"


def test_what_was_told_before_there_was_the_word_is_gone_on_with(made, tmp_path, monkeypatch):
    run, emit = made("student-only", EVERY_STEP), Events.emit

    def wordless(events, event, **values):
        emit(events, event, **{name: told for name, told in values.items() if name != "suspended"})

    with monkeypatch.context() as patch:
        patch.setattr(Events, "emit", wordless)
        attempt(run, tmp_path, stop_after=STEPS + 3)
    assert notes(attempt(run, tmp_path)) == []
    check_results(tmp_path)
    assert cell_of(tmp_path)["steps_resumed"] == STEPS + 3
    assert not pd.read_parquet(tmp_path / "steps")["suspended"].any()
