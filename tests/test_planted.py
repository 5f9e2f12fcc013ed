"""Regressions planted in a copy of the code: each is caught and told for what it is."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY, TINY

# For a card, whose profile takes the optimizer that torch would. Of one student the peak lies where
# its activations are, of the other, with much to learn from few tokens, in the optimizer's step.
MATRIX = (
    TINY.replace("width = 16", "width = 64")
    .replace("heads = 2", "heads = 4", 1)
    .replace('student = ["small"]', 'student = ["small", "heavy"]')
    + "\n[students.heavy]\npatch_size = 8\nwidth = 256\ndepth = 2\nheads = 4\n"
)
ARGUMENTS = ("--profile", "h100", "--only", "method=embed-kd")
SMALL, HEAVY = (f"embed-kd/{student}/8px/dwarf" for student in ("small", "heavy"))

BLOCK = "        result: Tensor = tokens + self.mlp(self.mlp_norm(tokens))\n        return result\n"
# (file, what is there, what comes in its place)
SAVED = ("student.py", BLOCK, BLOCK.replace("(tokens))\n", "(tokens)).exp().log()\n"))
KEPT = (
    "setup.py",
    "        teacher = None\n        supplies.release()\n",
    "        supplies.kept = teacher\n        teacher = None\n        supplies.release()\n",
)
REFACTORED = (
    "student.py",
    BLOCK,
    "        return self._mixed(tokens)\n\n"
    "    def _mixed(self, inner: Tensor) -> Tensor:\n"
    "        changed = self.mlp(self.mlp_norm(inner))\n"
    "        return inner + changed\n",
)


def checked(folder, *arguments, plant=None):
    """Run the gate as a copy of the package has it, with one change planted in it."""
    package = folder / "copy" / "kdbench"
    shutil.rmtree(package.parent, ignore_errors=True)
    shutil.copytree(REPOSITORY / "kdbench", package, ignore=shutil.ignore_patterns("__pycache__"))
    if plant is not None:
        name, there, instead = plant
        file = package / "worker" / name
        text = file.read_text()
        assert text.count(there) == 1
        file.write_text(text.replace(there, instead))
    return subprocess.run(
        [
            *(sys.executable, "-m", "kdbench", "check", *ARGUMENTS, "--matrix", "matrix.toml"),
            *("--baseline", "baseline.txt", *arguments),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(package.parent)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    """A folder with the matrix and the baseline of the code as it is, its optimizer fused."""
    folder = tmp_path_factory.mktemp("planted")
    (folder / "matrix.toml").write_text(MATRIX)
    done = checked(folder, "--set", 'training.optimizer_kernels="fused"', "--update")
    assert done.returncode == 0, done.stderr
    return folder


def grown(report, label):
    """Bytes by category that the report says grew at a cell's peak, and the parts that did."""
    (found,) = [
        finding
        for finding in report["findings"]
        if (finding["label"], finding["metric"]) == (label, "allocated_peak_bytes")
    ]
    assert found["outcome"] == "regressed"
    totals = {}
    for part in found["growth"]:
        change = part["after"] - part["before"]
        totals[part["category"]] = totals.get(part["category"], 0) + change
    return {name: change for name, change in totals.items() if change > 0}, found["growth"]


FUSED = ("--set", 'training.optimizer_kernels="fused"')


@pytest.mark.parametrize(
    ("plant", "arguments", "label", "category", "module"),
    [
        pytest.param(SAVED, FUSED, SMALL, "activations", "student.blocks.0", id="saved activation"),
        pytest.param(KEPT, FUSED, HEAVY, "teacher", "teacher.", id="teacher kept alive"),
        pytest.param(
            None,
            ("--set", 'training.optimizer_kernels="foreach"'),
            HEAVY,
            "workspace",
            None,
            id="foreach instead of fused",
        ),
        pytest.param(
            None,
            (*FUSED, "--set", "training.batch_size=16"),
            SMALL,
            "activations",
            "student.blocks.",
            id="doubled batch",
        ),
    ],
)
def test_a_planted_regression_is_caught_and_named(gated, plant, arguments, label, category, module):
    done = checked(gated, *arguments, "--format", "json", plant=plant)
    assert done.returncode == 1, done.stdout + done.stderr
    categories, parts = grown(json.loads(done.stdout), label)
    assert max(categories, key=categories.get) == category
    if module is not None:
        assert any(
            part["category"] == category
            and (part["module"] or "").startswith(module)
            and part["after"] > part["before"]
            for part in parts
        )


def test_a_pure_refactoring_gives_exactly_no_byte(gated):
    done = checked(gated, *FUSED, "--format", "json", "--update", plant=REFACTORED)
    assert done.returncode == 0, done.stdout + done.stderr
    findings = json.loads(done.stdout)["findings"]
    assert len(findings) >= 8
    assert {finding["outcome"] for finding in findings} == {"held"}
    assert all(finding["before"] == finding["after"] for finding in findings)
    assert done.stderr == "the baseline stays as it was: nothing changed\n"
