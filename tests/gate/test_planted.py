"""Regressions planted in a copy of kdbench: the gate finds each, and says what grew.

The copy stands for a pull request: its code is changed as somebody's mistake would change it, and
`kdbench check --matrix` runs there against a baseline that was written before.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import kdbench as package
from tests.conftest import TINY

# Enough of a student that its activations are what a step's memory is made of.
MATRIX = TINY.replace("width = 16\ndepth = 2", "width = 32\ndepth = 4").replace(
    "image_size = [8]", "image_size = [24]"
)
OPTIONS = ["--matrix", "tiny.toml", "--baseline", "baseline.txt", "--only", "method=embed-kd"]
CELL = "embed-kd/small/24px/dwarf"


def check(root, *arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "kdbench", "check", *OPTIONS, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """A folder with the matrix and its baseline, as the code is now."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "tiny.toml").write_text(MATRIX)
    settings = ("--set", 'training.optimizer_kernels="fused"')
    done = check(Path(package.__file__).parents[1], *settings, "--update", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def changed(tmp_path):
    """A copy of the package with one text in one of its files replaced."""

    def change(file, old, new):
        root = tmp_path / "copy"
        shutil.copytree(
            Path(package.__file__).parent,
            root / "kdbench",
            ignore=shutil.ignore_patterns("__pycache__"),
        )
        path = root / "kdbench" / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} has changed: mend this test"
        path.write_text(text.replace(old, new))
        return root

    return change


def grown(done, category):
    """The line of the report that says what of a category grew."""
    lines = [line.strip() for line in done.stdout.splitlines()]
    found = [line for line in lines if line.startswith(f"{category} +")]
    assert found, done.stdout
    return found[0]


FUSED = ("--set", 'training.optimizer_kernels="fused"')


def test_an_extra_saved_activation(changed, baseline):
    root = changed(
        "worker/models/student.py",
        "return x * torch.sigmoid(1.702 * x)",
        "return x * torch.sigmoid((1.702 * x).exp().log())",
    )
    done = check(root, *FUSED, cwd=baseline)
    assert done.returncode == 1, done.stdout + done.stderr
    assert CELL in done.stdout
    assert "regressed  allocated_peak_bytes" in done.stdout
    assert "student.blocks.*.mlp" in grown(done, "activations")


def test_a_teacher_kept_alive(changed, baseline):
    root = changed(
        "worker/training/setup.py",
        "        teacher = None\n        loader.release()",
        "        loader.release()",
    )
    done = check(root, *FUSED, cwd=baseline)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "regressed  parameter_bytes" in done.stdout
    assert "teacher.vit" in grown(done, "teacher")


def test_a_foreach_optimizer_in_a_fused_ones_place(baseline):
    root = Path(package.__file__).parents[1]
    # a batch so small that the optimizer's own room is the peak
    small = ("--set", "training.batch_size=1", "--set", "students.small.width=64")
    fused = (*FUSED, *small, "--update", "--baseline", "fused.txt")
    assert check(root, *fused, cwd=baseline).returncode == 0
    foreach = ("--set", 'training.optimizer_kernels="foreach"', *small, "--baseline", "fused.txt")
    done = check(root, *foreach, cwd=baseline)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "optimizer_kernels fused → foreach" in done.stdout
    assert grown(done, "workspace")


def test_a_doubled_batch(baseline):
    root = Path(package.__file__).parents[1]
    done = check(root, *FUSED, "--set", "training.batch_size=16", cwd=baseline)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "batch_size 8 → 16" in done.stdout
    assert "student.blocks" in grown(done, "activations")


def test_a_pure_refactoring_changes_nothing(changed, baseline):
    root = changed(
        "worker/models/student.py",
        "        return x * torch.sigmoid(1.702 * x)",
        "        steepness = 1.702\n        gate = torch.sigmoid(steepness * x)\n"
        "        return x * gate",
    )
    before = (baseline / "baseline.txt").read_text()
    done = check(root, *FUSED, cwd=baseline)
    assert done.returncode == 0, done.stdout + done.stderr
    assert check(root, *FUSED, "--update", cwd=baseline).returncode == 0
    assert (baseline / "baseline.txt").read_text() == before
