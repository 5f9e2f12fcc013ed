"""Checks on a real card; pytest runs them when they are named, as `python -m tests.gpu` does."""

import pandas as pd
import pytest
import torch

from kdbench import load_matrix
from kdbench.runner.device import resolve_device
from kdbench.runner.telemetry.nvml import AVAILABLE, open_nvml
from kdbench.worker.probes.user_step import measure_step
from tests.conftest import TINY
from tests.worker.probes.test_user_step import Training

# Larger than the tiny matrix, so that a cell lives long enough for NVML's process list.
LARGER = (
    "axes.image_size=[64]",
    "students.small.width=256",
    "students.small.depth=6",
    "training.batch_size=64",
    "data.train_images=6400",
    "budget.measure_seconds=4",
    "budget.max_steps=2000",
)


@pytest.fixture
def cells(kdbench, tiny, tmp_path):
    tiny.write_text(TINY)
    sets = [part for assignment in LARGER for part in ("--set", assignment)]
    said = kdbench("run", "--matrix", tiny, "--device", "cuda:0", *sets)
    assert said.code == 0, said
    return pd.read_parquet(tmp_path / "results/tiny/cells").set_index("method")


def test_the_device_is_found_and_known_to_nvml():
    resolved = resolve_device("auto")
    assert resolved.device == "cuda:0"
    assert resolved.gpu is not None, resolved.note
    assert resolved.gpu.name == torch.cuda.get_device_name(0)


def test_both_planes_of_memory(cells):
    assert set(cells["allocated_source"]) == {"cuda-allocator"}
    assert (cells["reserved_peak_bytes"] >= cells["allocated_peak_bytes"]).all()
    assert (cells["device_peak_bytes"] >= 0.9 * cells["reserved_peak_bytes"]).all()
    with open_nvml() as nvml:
        told = nvml.gpus()[0].process_memory
    if told == AVAILABLE:
        assert (cells["process_peak_bytes"] > 0).all()
    assert set(cells["steps_measured"] > 20) == {True}


def test_the_ledger_agrees_with_the_allocator(cells):
    """The allocator rounds blocks to 512 bytes and counts libraries' workspaces."""
    gap = cells["unattributed_bytes"]
    assert (gap >= 0).all(), gap
    assert (gap <= 64 * 2**20 + 0.02 * cells["allocated_peak_bytes"]).all(), gap


def test_energy(cells):
    assert (cells["energy_step_joules"].dropna() > 0).all()


def test_the_loss_agrees_with_the_cpus(kdbench, tiny, tmp_path):
    for device in ("cpu", "cuda:0"):
        said = kdbench(
            "run",
            "--matrix",
            tiny,
            "--device",
            device,
            "--only",
            "method=embed-kd",
            "--set",
            "students.small.attention_dropout=0.0",
            "--out",
            tmp_path / device,
        )
        assert said.code == 0, said
    losses = []
    for device in ("cpu", "cuda:0"):
        steps = pd.read_parquet(tmp_path / device / "tiny/steps")
        losses.append(steps[steps["phase"] == "warmup"]["loss"].iloc[0])
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert load_matrix(tiny).cells


def test_of_a_projects_own_step_the_allocator_tells_the_peak():
    training = Training(torch.optim.AdamW)
    training.model.cuda()
    training.images = training.images.cuda()
    training.optimizer = torch.optim.AdamW(training.model.parameters())
    used = measure_step(training, **training.named)
    assert (used.source, used.device) == ("cuda-allocator", "cuda:0")
    assert used.peak_bytes >= sum(used.held.values()) > 0
    assert used.reserved_bytes >= used.peak_bytes
    assert used.unattributed_bytes >= 0
