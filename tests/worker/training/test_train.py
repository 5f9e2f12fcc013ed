"""Training for real, on the bundled digits."""

import pandas as pd
import pytest

from kdbench.spec.method import BUILT_IN
from tests.conftest import TINY
from tests.support.consistency import check_results

pytestmark = pytest.mark.usefixtures("forked_workers")

TRAIN = """mode = "train"
seeds = [0, 1]
"""


def digits_text():
    """The tiny matrix as a training on the digits: two epochs of 20 steps."""
    text = TINY.replace('mode = "profile"', TRAIN).replace(
        'source = "synthetic"', 'source = "digits"'
    )
    text = (
        text.replace("classes = 5", "classes = 10")
        .replace("train_images = 64", "train_images = 640\nflip = false")
        .replace("test_images = 16", "test_images = 200")
        .replace("[teachers.dwarf]", '[teachers.dwarf]\nweights = "fitted"\nfit.epochs = 1')
    )
    return text.replace("batch_size = 8", "batch_size = 32\nepochs = 2\nlearning_rate = 3e-3")


@pytest.fixture
def digits(tiny):
    tiny.write_text(digits_text())
    return tiny


def read(root, name):
    return pd.read_parquet(root / "results/tiny" / name)


def test_training(kdbench, digits, tmp_path):
    methods = sorted(BUILT_IN)
    said = kdbench(
        *("run", "--matrix", digits, "--device", "cpu", "--only", "seed=0"),
        *("--set", f"axes.method={methods}"),
    )
    assert said.code == 0, said
    assert "teacher dwarf: fitted in" in said.out
    assert sum(line.startswith("  train ...") for line in said.out.splitlines()) == len(methods)
    cells = read(tmp_path, "cells").set_index("run_key")
    epochs, steps = read(tmp_path, "epochs"), read(tmp_path, "steps")
    assert sorted(cells["method"]) == methods
    assert set(cells["teacher_weights"].dropna()) == {"fitted"}
    assert set(cells["epoch_seconds_kind"]) == {"measured"}
    assert check_results(tmp_path / "results/tiny") == len(methods)
    for key, cell in cells.iterrows():
        own = epochs[epochs["run_key"] == key].sort_values("epoch")
        assert own["epoch"].tolist() == [0, 1]
        assert (own["steps"] == 20).all()
        assert cell["accuracy"] == own["test_accuracy"].iloc[-1]
        assert cell["accuracy_best"] == own["test_accuracy"].max()
        assert own["train_loss"].iloc[1] < own["train_loss"].iloc[0], "it learns"
        assert own["learning_rate"].tolist() == pytest.approx([3e-3, 1.5e-3])  # cosine, 2 epochs
        taken = steps[(steps["run_key"] == key) & (steps["phase"] == "train")]
        assert len(taken) == cell["steps_measured"] == 40


def test_a_seed_gives_the_same_curve_and_another_does_not(kdbench, digits, tmp_path):
    curves = {}
    for name, seeds in (("first", "0,1"), ("second", "0")):
        said = kdbench(
            "run",
            "--matrix",
            digits,
            "--device",
            "cpu",
            "--only",
            "method=embed-kd",
            "--only",
            f"seed={seeds}",
            "--out",
            tmp_path / name,
        )
        assert said.code == 0, said
        steps = pd.read_parquet(tmp_path / name / "tiny/steps")
        cells = pd.read_parquet(tmp_path / name / "tiny/cells").set_index("run_key")
        for key, own in steps[steps["phase"] == "train"].groupby("run_key"):
            ordered = own.sort_values(["epoch", "step"])["loss"].tolist()
            curves[name, cells.loc[key, "seed"]] = ordered
    assert curves["first", 0] == curves["second", 0], "to the bit"
    assert curves["first", 0] != curves["first", 1]


def test_a_loss_that_is_not_finite_ends_the_cell(kdbench, digits, tmp_path):
    said = kdbench(
        "run",
        "--matrix",
        digits,
        "--device",
        "cpu",
        "--preset",
        "control",
        "--only",
        "method=student-only",
        "--only",
        "seed=0",
        "--set",
        "training.learning_rate=1e6",
        "--set",
        "training.weight_decay=1e6",
    )
    assert said.code == 1
    (cell,) = read(tmp_path, "cells").to_dict("records")
    assert cell["status"] == "diverged", cell["error"]
    assert "not finite" in cell["error"]


def test_a_teacher_that_cannot_be_fitted_fails_its_cells(kdbench, digits, tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("KDBENCH_CACHE", str(blocked))
    said = kdbench(
        "run", "--matrix", digits, "--device", "cpu", "--preset", "control", "--only", "seed=0"
    )
    assert said.code == 1
    cells = read(tmp_path, "cells").set_index("method")
    assert cells["status"].to_dict() == {
        "embed-kd": "failed",
        "teacher-kd": "failed",
        "student-only": "ok",
    }
    assert "fitting the teacher 'dwarf'" in cells.loc["embed-kd", "error"]
    assert set(read(tmp_path, "phases")["run_key"]) == {cells.loc["student-only", "run_key"]}
