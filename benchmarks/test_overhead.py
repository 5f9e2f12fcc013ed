"""What kdbench adds to what it measures, as ratios within one run: `nox -s bench`.

Timings decide nothing here: machines are noisy. The ratios are printed and kept in
pytest-benchmark's `extra_info`.
"""

import subprocess
import sys
from pathlib import Path
from statistics import median
from time import perf_counter

import torch

from kdbench import load_matrix
from kdbench.worker.data import load_data
from kdbench.worker.probes import Probes
from kdbench.worker.training import build_session

MATRIX = Path(__file__).with_name("fig4.toml")


def seconds(work):
    started = perf_counter()
    work()
    return perf_counter() - started


def ratio_in_turn(first, second, rounds):
    """Median over rounds of first over second, the two run in turn."""
    return median(seconds(first) / seconds(second) for _ in range(rounds))


def test_help(benchmark):
    """`kdbench --help` against an interpreter that does nothing."""
    command = [sys.executable, "-m", "kdbench", "--help"]

    def help_():
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def nothing():
        subprocess.run([sys.executable, "-c", "pass"], check=True)

    benchmark.pedantic(help_, rounds=5, warmup_rounds=1)
    benchmark.extra_info["ratio_to_bare_python"] = ratio_in_turn(help_, nothing, 5)
    print(benchmark.extra_info)


def test_timed_step(benchmark):
    """A timed step with the default probes against the same step without, in one process."""
    matrix = load_matrix(MATRIX, preset="control", only=["label=student-only/base/32px"])
    (run,) = matrix.runs()
    device = torch.device("cpu")
    session = build_session(
        run.cell,
        device=device,
        seed=0,
        probes=Probes(device),
        data=load_data(run.cell, device=device),
        teacher=None,
        embeddings=None,
    )
    draw = next(session.draws(0))

    def probed():
        session.timed_step(draw)

    def bare():
        float(session.step(draw)[0].loss)

    benchmark.pedantic(probed, rounds=5, warmup_rounds=2)
    benchmark.extra_info["ratio_to_bare_step"] = ratio_in_turn(probed, bare, 9)
    print(benchmark.extra_info)
