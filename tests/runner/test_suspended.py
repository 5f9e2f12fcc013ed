"""A run whose worker is stopped in mid-step and continued: what becomes of that step."""

import os
import shutil
from statistics import median

import pandas as pd
import pytest

from kdbench.spec import method as registry
from tests.support import SUPPORT
from tests.support.consistency import check_results
from tests.support.stopping_method import STOPPED_SECONDS
from tests.worker.training.test_train import digits_text

ENTRY = "[kdbench.methods]\nstopped = stopping_method:METHOD\n"
# one step to warm up, so that it is known which step is timed
SHORT = ("budget.warmup_seconds=1e-9", "budget.measure_seconds=1e6")


@pytest.fixture
def stopped_at(tmp_path, monkeypatch, kdbench, tiny):
    """Run one cell whose so-manieth step is stopped; returns its row, the tables, what was said."""

    def run(call, *assignments):
        site = tmp_path / "site"
        info = site / "stopping_method-1.dist-info"
        info.mkdir(parents=True)
        shutil.copy(SUPPORT / "stopping_method.py", site)
        (site / "call").write_text(str(call))
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stopping-method\nVersion: 1\n")
        (info / "entry_points.txt").write_text(ENTRY)
        monkeypatch.syspath_prepend(site)
        there = os.environ.get("PYTHONPATH")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(site), there))))
        sets = ('axes.method="stopped"', *SHORT, *assignments)
        said = kdbench(
            *("run", "--matrix", tiny, "--device", "cpu"),
            *(part for text in sets for part in ("--set", text)),
        )
        assert said.code == 0, said
        root = tmp_path / "results/tiny"
        assert check_results(root) == 1
        names = ("cells", "steps", "phases", "epochs")
        tables = {name: pd.read_parquet(root / name).to_dict("records") for name in names}
        return tables["cells"][0], tables, said

    registry._plugged.cache_clear()
    yield run
    registry._plugged.cache_clear()


@pytest.mark.parametrize("launch", ["spawn", "fork"])
def test_a_step_that_was_stopped_is_marked_and_not_averaged_in(stopped_at, kdbench, launch):
    budget = ("budget.min_steps=8", "budget.max_steps=8", f'launch="{launch}"')
    cell, tables, said = stopped_at(5, *budget)
    timed = [step for step in tables["steps"] if step["phase"] == "measure"]
    assert [step["suspended"] for step in timed] == [False] * 3 + [True] + [False] * 5
    assert timed[3]["seconds"] >= STOPPED_SECONDS
    clean = [step["seconds"] for step in timed if not step["suspended"]]
    assert cell["step_seconds_median"] == pytest.approx(median(clean))
    assert (cell["steps_measured"], cell["suspended_steps"], cell["warmup_steps"]) == (8, 1, 2)
    marked = [row["phase"] for row in tables["phases"] if row["suspended"]]
    assert marked == ["measure"]
    assert "suspended in mid-step (1 not counted)" in said.out
    shown = kdbench("show", "results")
    assert "suspended: the machine was, or the process was stopped, in mid-step" in shown.out


def test_an_epoch_with_such_a_step_is_trained_and_not_timed(stopped_at, tiny):
    tiny.write_text(digits_text())
    cell, tables, _ = stopped_at(30, "training.epochs=3", "seeds=[0]")
    steps = [step for step in tables["steps"] if step["phase"] == "train"]
    (lost,) = [step for step in steps if step["suspended"]]
    assert (lost["epoch"], lost["step"]) == (1, 9)
    first, long, last = [row["train_seconds"] for row in tables["epochs"]]
    assert long >= STOPPED_SECONDS
    assert cell["epoch_seconds"] == pytest.approx((first + last) / 2)
    assert (cell["epoch_seconds_kind"], cell["suspended_steps"]) == ("measured", 1)
    assert (cell["steps_measured"], len(steps), cell["steps_resumed"]) == (59, 60, 0)
    assert 0 <= cell["accuracy"] <= 1
    assert [row["suspended"] for row in tables["phases"] if row["phase"] == "train"] == [
        *(False, True),
        False,
    ]
