"""Whether a results folder agrees with itself: every figure of `cells` with the rows behind it.

For any folder that a test has made: `check_results(root)`.
"""

import math
from itertools import pairwise
from statistics import median

import pandas as pd
import pytest

from kdbench.store.schema import STEP_PARTS

TIMED = ("measure", "train")


def check_results(root, *, unsampled=()):
    """Check all runs in `results/<matrix>`; returns how many there are.

    `unsampled` are the keys of runs whose sampler did not live to their end.
    """
    tables = {
        name: pd.read_parquet(root / name)
        for name in ("cells", "phases", "epochs", "steps", "samples", "memory", "timeline")
    }
    cells = tables["cells"]
    assert cells["run_key"].is_unique
    for name, frame in tables.items():
        assert set(frame["run_key"]) <= set(cells["run_key"]), name
    for cell in cells.to_dict("records"):
        own = {
            name: frame[frame["run_key"] == cell["run_key"]].to_dict("records")
            for name, frame in tables.items()
        }
        _check_steps(cell, own)
        _check_attempts(cell, own)
        _check_memory(cell, own)
        _check_sampled(cell, own, whole=cell["run_key"] not in unsampled)
        if cell["mode"] == "train":
            _check_training(cell, own)
        else:
            assert pd.isna(cell["steps_resumed"])
            assert own["epochs"] == []
    return len(cells)


def _check_steps(cell, own):
    timed = [step for step in own["steps"] if step["phase"] in TIMED]
    _check_suspended(cell, own, timed)
    clean = [step for step in timed if not step["suspended"]]
    seconds = [step["seconds"] for step in clean]
    assert cell["steps_measured"] == len(clean)
    assert all(step["seconds"] > 0 for step in timed)
    if not clean:
        assert pd.isna(cell["step_seconds_median"])
        return
    assert cell["step_seconds_median"] == pytest.approx(median(seconds), rel=1e-12)
    assert cell["step_seconds_fastest"] == min(seconds)
    if len(clean) >= 6:
        low, high = cell["step_seconds_ci_low"], cell["step_seconds_ci_high"]
        assert min(seconds) <= low <= cell["step_seconds_median"] <= high <= max(seconds)
    for phase in ("warmup", "measure", "account"):
        numbers = [step["step"] for step in own["steps"] if step["phase"] == phase]
        assert numbers == list(range(len(numbers))), phase
    warm = sum(step["phase"] == "warmup" for step in own["steps"])
    assert warm == cell["warmup_steps"] or (cell["mode"] == "train" and warm == 0)
    _check_parts(cell, timed, clean)
    # a phase that came to its end counts its steps
    for phase in TIMED:
        rows = [row for row in own["phases"] if row["phase"] == phase]
        if all(not pd.isna(row["seconds"]) for row in rows):
            count = sum(step["phase"] == phase for step in timed)
            assert sum(row["units"] for row in rows) == count, phase


def _check_suspended(cell, own, timed):
    """It is known of all that ran; a profile warms up again after each step that was."""
    assert not any(pd.isna(step["suspended"]) for step in own["steps"])
    assert all(pd.isna(row["suspended"]) == pd.isna(row["seconds"]) for row in own["phases"])
    lost = [step for step in timed if step["suspended"]]
    if timed:
        assert cell["suspended_steps"] == len(lost)
    else:
        assert pd.isna(cell["suspended_steps"])
    if cell["mode"] == "profile" and cell["status"] == "ok":
        names = [row["phase"] for row in own["phases"] if row["phase"] in ("warmup", "measure")]
        assert names == ["warmup", "measure"] * (len(lost) + 1)
        ends = [row["started_ns"] + row["seconds"] * 1e9 for row in own["phases"]]
        behind = [sum(end < step["started_ns"] for end in ends) for step in lost]
        assert len(set(behind)) == len(lost), "one ends its phase"


def _check_parts(cell, timed, clean):
    """On a CPU the parts are the whole, on a card the time between its events."""
    whole = "device_seconds" if cell["device"].startswith("cuda") else "seconds"
    for step in timed:
        parts = [step[f"{part}_seconds"] for part in STEP_PARTS]
        assert sum(part for part in parts if not pd.isna(part)) == pytest.approx(step[whole])
    for part in STEP_PARTS:
        seconds = [step[f"{part}_seconds"] for step in clean]
        if part == "teacher" and all(pd.isna(value) for value in seconds):
            assert pd.isna(cell["step_teacher_seconds"])
            continue
        assert cell[f"step_{part}_seconds"] == pytest.approx(median(seconds), rel=1e-12)
        assert min(seconds) > 0


def _check_memory(cell, own):
    """The ledger's peak is its timeline's highest moment, and splits there as `memory` says."""
    if cell["compile"] or not own["memory"]:
        assert own["memory"] == own["timeline"] == []
        assert pd.isna(cell["flops_step"])
        assert cell["allocated_source"] != "ledger"
        return
    assert cell["flops_step"] > 0
    live, moments = {}, {}
    for row in own["timeline"]:
        live[row["category"]] = row["live_bytes"]
        moments[row["moment"]] = dict(live)
    assert list(moments) == list(range(len(moments))), "in order, none left out"
    first = [row["category"] for row in own["timeline"] if row["moment"] == 0]
    assert sorted(first) == sorted(live), "each category starts with a row"
    assert all(row["live_bytes"] >= 0 for row in own["timeline"])
    split = {}
    for row in own["memory"]:
        split[row["category"]] = split.get(row["category"], 0) + row["bytes"]
    peak = max(moments.values(), key=lambda held: sum(held.values()))
    assert {name: size for name, size in peak.items() if size} == split
    if cell["allocated_source"] == "ledger":
        assert cell["allocated_peak_bytes"] == sum(split.values())
        # what operations take within themselves is the processor's to decide; the rest is scalars,
        # and the random numbers' state of blocks that are computed again
        if not pd.isna(cell["unattributed_bytes"]):
            scratch = cell["unattributed_scratch_bytes"]
            assert 0 <= scratch <= cell["unattributed_bytes"] <= scratch + 12 * 1024, cell


def _check_sampled(cell, own, *, whole):
    """Samples begin before the worker and end after it; what they give says what it is."""
    contended = not pd.isna(cell["contended"]) and bool(cell["contended"])
    assert pd.isna(cell["contention"]) != contended
    if not pd.isna(cell["precompute_reused"]) and cell["precompute_reused"]:
        assert pd.isna(cell["precompute_joules"])
    assert pd.isna(cell["energy_training_joules"]) == pd.isna(cell["energy_training_kind"])
    times = [row["monotonic_ns"] for row in own["samples"]]
    if len(times) < 2:
        assert pd.isna(cell["sample_seconds_median"])
        return
    assert times == sorted(times)
    gaps = [(after - before) / 1e9 for before, after in pairwise(times)]
    assert cell["sample_seconds_median"] == pytest.approx(median(gaps))
    assert cell["sample_seconds_max"] == pytest.approx(max(gaps))
    assert pd.isna(own["samples"][0]["host_bytes"]), "before the worker started"
    assert pd.isna(own["samples"][-1]["host_bytes"]) or not whole, "after it ended"


def _check_attempts(cell, own):
    attempts = [row["attempt"] for name in ("phases", "steps") for row in own[name]]
    assert not any(pd.isna(attempt) for attempt in attempts)
    last = max(attempts, default=0)
    if cell["mode"] == "profile":
        assert last == 0
        return
    taken = [step["attempt"] for step in own["steps"] if step["phase"] == "train"]
    assert cell["steps_resumed"] == sum(attempt < last for attempt in taken)
    for name in ("phases", "steps"):
        numbers = [row["attempt"] for row in own[name]]
        assert numbers == sorted(numbers), f"{name} are in order"
    # what an earlier attempt began and did not end is not there: it was done again
    assert all(not pd.isna(row["seconds"]) for row in own["phases"] if row["attempt"] < last)


def _check_training(cell, own):
    steps = [step for step in own["steps"] if step["phase"] == "train"]
    epochs = own["epochs"]
    assert [row["epoch"] for row in epochs] == list(range(len(epochs)))
    places = [(step["epoch"], step["step"]) for step in steps]
    assert len(set(places)) == len(places), "no step twice"
    assert places == sorted(places), "in order"
    for row in epochs:
        mine = [step for step in steps if step["epoch"] == row["epoch"]]
        assert [step["step"] for step in mine] == list(range(row["steps"]))
        losses = [step["loss"] for step in mine]
        assert row["train_loss"] == math.fsum(losses) / len(losses), "to the bit"
        assert row["train_seconds"] == sum(step["seconds"] for step in mine)
        assert 0 <= row["train_accuracy"] <= 1
        if cell["loss"] != "published-code":
            share = (1 + math.cos(math.pi * row["epoch"] / cell["epochs"])) / 2
            assert row["learning_rate"] == pytest.approx(cell["learning_rate"] * share)
    accuracies = [row["test_accuracy"] for row in epochs]
    if accuracies:
        assert cell["accuracy_best"] == max(accuracies)
        lost = {step["epoch"] for step in steps if step["suspended"]}
        whole = [row for row in epochs if row["epoch"] not in lost]
        seconds = (
            median([row["train_seconds"] for row in whole])
            if whole
            else cell["step_seconds_median"] * epochs[0]["steps"]
        )
        assert cell["epoch_seconds"] == pytest.approx(seconds, rel=1e-12)
        assert cell["epoch_seconds_kind"] == ("measured" if whole else "extrapolated")
    if len(epochs) == cell["epochs"]:
        assert cell["accuracy"] == accuracies[-1]
    else:
        assert pd.isna(cell["accuracy"])
        assert cell["status"] != "ok"
    if cell["status"] == "ok":
        counts = {row["steps"] for row in epochs}
        assert len(counts) == 1
        assert len(steps) == cell["epochs"] * counts.pop()
        assert sum(row["phase"] == "evaluate" for row in own["phases"]) == cell["epochs"]
