"""What kdbench adds to what it measures: `nox -s bench`.

Timings decide nothing here: machines are noisy. What was measured is printed beside what it should
be at most, and kept in pytest-benchmark's `extra_info`. Each figure compares things that ran in
turn on the same machine; for an absolute one, the machine should be idle.
"""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter

import pandas as pd
import psutil
import pytest
import torch
from bare import Loop, Student

from kdbench import load_matrix
from kdbench.common.stats import median, median_interval
from kdbench.runner.device import ResolvedDevice
from kdbench.runner.matrix_runner import run_matrix
from kdbench.runner.progress import Progress
from kdbench.runner.telemetry.sampler_process import SamplerProcess
from kdbench.worker.data.dataset import load_data
from kdbench.worker.events import Events
from kdbench.worker.probes.memory import Probes
from kdbench.worker.training.session import build_session

HERE = Path(__file__).parent
CPU = torch.device("cpu")
# Neighbouring blocks of steps are compared: what a machine's slow spells add, they add to both. A
# block is longer than the sampler's period, which takes a sample as soon as it may go on.
PAIRED_SECONDS = 100.0
BLOCK_SECONDS = 0.5
FEWEST_PAIRS = 40


def report(benchmark, what, values, target, unit=""):
    """Print and keep the median of some values, its 95 % interval and the target."""
    middle, interval = median(values), median_interval(values)
    shown = f" ({interval[0]:.4g} to {interval[1]:.4g})" if interval else ""
    wanted = "" if target is None else f"; target: at most {target:g}{unit}"
    print(f"{what}: {middle:.4g}{unit}{shown}, least {min(values):.4g}{unit}{wanted}")
    benchmark.extra_info[what] = {
        "median": middle,
        "interval": interval,
        "least": min(values),
        "target": target,
        "values": list(values),
    }


def seconds(work):
    started = perf_counter()
    work()
    return perf_counter() - started


# --- the command line


def test_help(benchmark):
    """`kdbench --help` against an interpreter that does nothing."""
    command = [sys.executable, "-m", "kdbench", "--help"]

    def help_():
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def nothing():
        subprocess.run([sys.executable, "-c", "pass"], check=True)

    benchmark.pedantic(help_, rounds=5, warmup_rounds=1)
    ratios = [seconds(help_) / seconds(nothing) for _ in range(7)]
    report(benchmark, "--help over a bare interpreter", ratios, None)


# --- the timed steps


@contextmanager
def sampled(folder):
    """A sampler at its default rate that watches this process; yields its process."""
    sampler = SamplerProcess(folder / "samples.jsonl", gpu_uuid=None)
    assert sampler.problem is None
    (process,) = [
        child
        for child in psutil.Process().children()
        if "kdbench.runner.telemetry.sampler" in child.cmdline()
    ]
    sampler.watch(os.getpid())
    try:
        yield process
    finally:
        process.send_signal(signal.SIGCONT)
        sampler.stop()


def session_of(*assignments):
    matrix = load_matrix(
        HERE / "fig4.toml",
        preset="control",
        only=["label=student-only/base/32px"],
        assignments=assignments,
    )
    (run,) = matrix.runs()
    return build_session(
        run.cell,
        device=CPU,
        seed=0,
        probes=Probes(CPU),
        data=load_data(run.cell, device=CPU),
        teacher=None,
        embeddings=None,
    )


@pytest.mark.parametrize("batch_size", [64, 4])
def test_timed_steps(batch_size, benchmark, tmp_path):
    """Steps as a cell times them, sampler and all, against the same training by hand.

    Model and optimizer are the very same objects: two of them would lie differently in memory.
    The small batch shows what a short step pays; the large one is the paper's.
    """
    session = session_of(f"training.batch_size={batch_size}")
    events, images = Events(tmp_path / "events.jsonl"), session.data.train
    bare = Loop(
        None,
        lambda seen: session.student(seen).logits,
        images.pixels,
        images.labels,
        count=session.data.train_count,
        batch=batch_size,
        optimizer=session.optimizer,
    )

    def draws():
        while True:
            yield from session.draws(0)

    drawn = draws()

    def probed_step():
        row = session.timed_step(next(drawn))[0]
        events.emit("step", phase="measure", step=0, epoch=None, **row)

    for _ in range(3):
        probed_step()
    step_seconds = seconds(probed_step)
    length = max(1, round(BLOCK_SECONDS / step_seconds))
    pairs = max(FEWEST_PAIRS, round(PAIRED_SECONDS / 2 / length / step_seconds))
    ratios, added = [], []

    def block(step):
        def steps():
            for _ in range(length):
                step()

        return steps

    with sampled(tmp_path) as sampler:

        def probed():
            sampler.send_signal(signal.SIGCONT)
            return seconds(block(probed_step))

        def by_hand():
            sampler.send_signal(signal.SIGSTOP)
            return seconds(block(bare.step))

        for pair in range(pairs):
            # each goes first in turn, so that what drifts favours neither
            if pair % 2:
                first, second = by_hand(), probed()
                ours, theirs = second, first
            else:
                ours, theirs = probed(), by_hand()
            ratios.append(ours / theirs)
            added.append((ours - theirs) / length * 1e6)
        sampler.send_signal(signal.SIGCONT)
        benchmark.pedantic(probed_step, rounds=5)
    what = f"a timed step of {batch_size} images"
    report(benchmark, f"{what} over the same by hand", ratios, 1.01)
    report(benchmark, f"{what}, added", added, None, " µs")


def test_sampler(benchmark, tmp_path):
    """The sampler's own use of a processor, at its default rate."""
    window, shares = 4.0, []
    with sampled(tmp_path) as sampler:

        def used():
            times = sampler.cpu_times()
            return times.user + times.system

        def watch():
            before, started = used(), perf_counter()
            time.sleep(window)
            shares.append(100 * (used() - before) / (perf_counter() - started))

        time.sleep(1)
        benchmark.pedantic(watch, rounds=6)
    report(benchmark, "the sampler's share of one processor", shares, 2, " %")


# --- a cell's fixed cost

CELL = """
name = "fixed"
threads = 1
repeats = 9

[axes]
method = ["METHOD"]
student = ["small"]
image_size = [8]
teacher = ["dwarf"]

[students.small]
patch_size = 4
width = 16
depth = 2
heads = 2

[teachers.dwarf]
patch_size = 8
width = 24
depth = 1
heads = 2
image_size = 16

[data]
source = "synthetic"
name = "noise"
classes = 5
image_size = 8
train_images = 64
test_images = 16

[training]
batch_size = 8

[budget]
max_steps = 20
warmup_seconds = 0.1
measure_seconds = 1
"""
BARE = {
    "threads": 1,
    "student": {"patch": 4, "width": 16, "depth": 2, "heads": 2},
    "side": 8,
    "classes": 5,
    "images": 64,
    "batch": 8,
    "teacher": None,
}
DWARF = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "patch_size": 8,
    "image_size": 16,
}


class InTurn(Progress):
    """After each cell of a run, the same steps by hand; both as seen from here.

    `cells` are seconds from the end of what came before a cell to when its rows are on disk;
    `wholes` those of the interpreter that does the same by hand, `parts` what it spent after its
    imports.
    """

    def __init__(self, asked, root):
        self.asked, self.root = asked, root
        self.cells, self.wholes, self.parts = [], [], []
        self.since = perf_counter()

    def cell_finished(self, cell, _log=None):
        self.cells.append(perf_counter() - self.since)
        assert cell["status"] == "ok", cell["error"]
        steps = pd.read_parquet(self.root / "steps", filters=[("run_key", "==", cell["run_key"])])
        asked = {**self.asked, "steps": int((steps["phase"] != "account").sum())}
        command = [sys.executable, "-P", str(HERE / "bare.py"), json.dumps(asked)]
        started = perf_counter()
        done = subprocess.run(command, check=True, capture_output=True)
        self.wholes.append(perf_counter() - started)
        self.parts.append(json.loads(done.stdout)["seconds"])
        self.since = perf_counter()


@pytest.mark.parametrize("method", ["student-only", "teacher-kd"])
@pytest.mark.parametrize("launch", ["spawn", "fork"])
def test_fixed_cost(launch, method, benchmark, tmp_path):
    """A cell's whole time, less that of the same model and as many steps by hand.

    Of a fresh process, what is taken off is an interpreter from its start, with the import of torch
    (and transformers, for a teacher), until it leaves at once after its last step. Of a forked one,
    which imports nothing, it is what that interpreter spends after its imports. All else is the
    cost: the sampler, kdbench's own imports, the accounting step, the rows on disk. The first cell
    is left out: it measures the machine's rates, and a warm process is started for it.
    """
    path = tmp_path / "fixed.toml"
    path.write_text(CELL.replace("METHOD", method))
    matrix = load_matrix(path, assignments=[f'launch="{launch}"'])
    asked = {**BARE, "teacher": DWARF if method == "teacher-kd" else None}
    in_turn = InTurn(asked, tmp_path / "results" / "fixed")

    def run():
        run_matrix(matrix, out=tmp_path / "results", device=ResolvedDevice("cpu"), progress=in_turn)

    benchmark.pedantic(run, rounds=1)
    taken_off = in_turn.wholes if launch == "spawn" else in_turn.parts
    costs = [cell - bare for cell, bare in zip(in_turn.cells, taken_off, strict=True)][1:]
    report(benchmark, f"a cell's fixed cost, {method}, {launch}", costs, 0.5, " s")


def test_by_hand_is_the_same_training():
    """The yardstick is no other model: it has the same weights, and the same scores for them."""
    session = session_of()
    shape = session.cell.student
    mine = Student(shape.patch_size, shape.width, shape.depth, shape.heads, 32, 100)
    theirs = session.student
    with torch.no_grad():  # both have their parameters in the order in which they are used
        for own, other in zip(mine.parameters(), theirs.parameters(), strict=True):
            own.copy_(other)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(mine.eval()(images)[1], theirs.eval()(images).logits)
