"""Predictions, held against what a step of the same cell really allocates."""

import itertools
import json
import os
import signal
from collections import defaultdict

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from kdbench import load_matrix
from kdbench.cli import main
from kdbench.predict import fits as fits_module
from kdbench.predict import trace as trace_module
from kdbench.predict.__main__ import answers
from kdbench.predict.cell import predict
from kdbench.predict.fits import fit, largest_fitting
from kdbench.predict.kernels import card_kernels
from kdbench.predict.replay import replay
from kdbench.predict.trace import TraceCache, trace, with_training
from kdbench.runner import prediction
from kdbench.spec.device_profile import known_profiles, load_profile
from kdbench.worker.probes.account import account_step
from kdbench.worker.probes.ledger import Ledger
from tests.conftest import ALONE, TINY
from tests.support import REPOSITORY
from tests.support.models import CPU, session_of, tiny_run

CPU_PROFILE = load_profile("cpu")
EXACT = [
    "allocated_peak_bytes",
    "parameter_bytes",
    "student_parameters",
    "precompute_peak_bytes",
    "precompute_kept_bytes",
    "flops_step",
    "operations_step",
    "bytes_moved_step",
]


def frame(folder, table):
    return pd.read_parquet(folder / table)


def split(rows):
    """Bytes by category and module."""
    total = defaultdict(int)
    for row in rows:
        total[row["category"], row["module"]] += row["bytes"]
    return dict(total)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Predictions of the tiny matrix and its control."""
    folder = tmp_path_factory.mktemp("predicted")
    (folder / "tiny.toml").write_text(TINY)
    arguments = ["--matrix", folder / "tiny.toml", "--preset", "control", "--out", folder]
    assert main(["predict", *map(str, arguments)]) == 0
    return folder / "tiny"


def test_the_command_line_predicts_what_was_measured(made, finished):
    predicted = frame(made, "cells").set_index("label")
    measured = frame(finished / "tiny", "cells").set_index("label")
    assert list(predicted.index.sort_values()) == list(measured.index.sort_values())
    for label, name in itertools.product(measured.index, EXACT):
        before, after = measured.at[label, name], predicted.at[label, name]
        assert (pd.isna(before) and pd.isna(after)) or before == after, (label, name)
    assert set(predicted["source"]) == {"predicted"}
    assert set(predicted["profile"]) == {"cpu"}
    assert set(predicted["status"]) == {"ok"}
    assert predicted["caveats"].isna().all()
    assert set(predicted["cell_id"]) == set(measured["cell_id"])


def test_categories_modules_and_timeline_are_those_measured(made, finished):
    tables = {
        name: {t: frame(folder, t) for t in ("cells", "memory", "timeline")}
        for name, folder in (("predicted", made), ("measured", finished / "tiny"))
    }
    found = defaultdict(dict)
    for name, own in tables.items():
        labels = dict(zip(own["cells"]["run_key"], own["cells"]["label"], strict=True))
        steady = own["memory"][own["memory"]["stage"] == "steady"].copy()
        steady["module"] = steady["module"].fillna("")
        for key, rows in steady.groupby("run_key"):
            parts = rows.groupby(["category", "module"])["bytes"].sum().to_dict()
            found[labels[key]][name] = parts
        for key, rows in own["timeline"].groupby("run_key"):
            changes = rows[rows["moment"] > 0].sort_values("moment")
            found[labels[key], "timeline"][name] = changes[
                ["part", "category", "live_bytes"]
            ].values.tolist()
    assert len(found) == 6
    for label, both in found.items():
        assert both["predicted"] == both["measured"], label


SETTINGS = {
    "cached": ("cached-kd", ()),
    "vanilla": ("vanilla-kd", ()),
    "bf16": ("teacher-kd", ('training.precision="bf16"',)),
    "fp16": ("embed-kd", ('training.precision="fp16"',)),
    "sdpa": ("embed-kd", ('training.attention="sdpa"',)),
    "no dropout": ("embed-kd", ('training.attention="sdpa"', "students.small.attention_dropout=0")),
    "checkpointing": ("embed-kd", ("training.checkpointing=true",)),
    "foreach": ("student-only", ('training.optimizer_kernels="foreach"',)),
    "fused": ("student-only", ('training.optimizer_kernels="fused"',)),
    "published": ("embed-kd", ('training.loss="published-code"',)),
    "crop": ("teacher-kd", ("data.crop=[0.5,1.0]",)),
    "one image": ("student-only", ("training.batch_size=1",)),
    "larger": ("teacher-kd", ("axes.image_size=12",)),
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_to_the_byte(setting, tmp_path):
    method, assignments = SETTINGS[setting]
    run = tiny_run(tmp_path, method, *assignments)
    torch.set_num_threads(1)
    session = session_of(run.cell, CPU, tmp_path)
    draws = session.draws(0)
    for _ in range(2):
        session.step(next(draws))
    account = account_step(session, next(draws))
    made = predict(run, CPU_PROFILE)
    assert made.columns["allocated_peak_bytes"] == account.ledger.peak_bytes()
    steady = [row for row in made.memory if row["stage"] == "steady"]
    assert split(steady) == split(share.row() for share in account.ledger.shares())
    assert made.columns["flops_step"] == account.work.flops
    assert made.columns["operations_step"] == account.work.operations
    assert made.columns["bytes_moved_step"] == account.work.bytes_moved


def test_the_first_step_is_one_without_gradients_and_state(tmp_path):
    run = tiny_run(tmp_path, "student-only")
    session = session_of(run.cell, CPU, tmp_path)
    draw, ledger = next(session.draws(0)), Ledger(CPU)
    ledger.register_module(session.student, "parameters", prefix="student")
    ledger.register([*session.data.tensors(), *draw.tensors()], "inputs")
    with ledger:
        session.step(draw, ledger.mark)
    columns = predict(run, CPU_PROFILE).columns
    assert columns["first_allocated_peak_bytes"] == ledger.peak_bytes()
    assert columns["first_allocated_peak_bytes"] < columns["allocated_peak_bytes"]


def paper_runs(*assignments):
    matrix = load_matrix(REPOSITORY / "benchmarks" / "fig4.toml", assignments=assignments)
    return {run.cell.label: run for run in matrix.runs()}


@pytest.mark.parametrize("label", sorted(paper_runs()))
def test_the_papers_cells_to_the_byte(label, tmp_path):
    """Their real models, on a batch that a test has time for."""
    run = paper_runs("training.batch_size=2", "data.train_images=64")[label]
    session = session_of(run.cell, CPU, tmp_path)
    draws = session.draws(0)
    session.step(next(draws))
    account = account_step(session, next(draws))
    made = predict(run, CPU_PROFILE)
    assert made.columns["allocated_peak_bytes"] == account.ledger.peak_bytes()
    assert made.columns["flops_step"] == account.work.flops


def test_again_it_is_the_same(tmp_path):
    run = tiny_run(tmp_path, "embed-kd")
    for profile in (CPU_PROFILE, load_profile("h100")):
        assert predict(run, profile) == predict(run, profile)


# --- for a card


def shares_of_category(made, category):
    return sum(
        row["bytes"]
        for row in made.memory
        if row["stage"] == "steady" and row["category"] == category
    )


@pytest.mark.parametrize("profile", ["h100", "t4"])
def test_a_card_counts_in_blocks(profile, tmp_path):
    device = load_profile(profile)
    made = predict(tiny_run(tmp_path, "embed-kd"), device)
    columns = made.columns
    assert columns["allocated_source"] == "simulation"
    assert columns["allocated_peak_bytes"] % 512 == 0
    assert columns["reserved_peak_bytes"] >= columns["allocated_peak_bytes"]
    assert (
        sum(r["bytes"] for r in made.memory if r["stage"] == "steady")
        == (columns["allocated_peak_bytes"])
    )
    cublas = [r for r in made.memory if (r["stage"], r["module"]) == ("steady", "cublas")]
    assert sum(row["bytes"] for row in cublas) == 2 * device.cublas_workspace_bytes, (
        "the main thread's and autograd's own"
    )
    assert ("held against such a card" in columns["caveats"]) == (not device.verified)


def exact_peak_events(run, profile):
    """Bytes of each live block at the steady peak of the trace itself, no allocator between."""
    traced = trace(run, profile)
    return replay(traced, profile.model_copy(update={"device": "cpu"})).peaks["steady"]


def test_a_cards_dropout_keeps_a_byte_where_a_cpu_keeps_a_float(tmp_path):
    run = tiny_run(tmp_path, "student-only", "students.small.depth=8", "axes.image_size=24")
    shape, training = run.cell.student, run.cell.training
    tokens = (run.cell.image_size // shape.patch_size) ** 2 + 1
    weights = training.batch_size * shape.heads * tokens**2
    run = with_training(run, optimizer_kernels="single")
    on_cpu, on_card = (
        sum(s.size for s in exact_peak_events(run, p).shares if s.category == "activations")
        for p in (CPU_PROFILE, load_profile("h100"))
    )
    assert on_cpu - on_card == 3 * shape.depth * weights


def test_fused_attention_keeps_no_weights(tmp_path):
    plain, fused = (
        predict(
            tiny_run(
                tmp_path,
                "student-only",
                "axes.image_size=24",
                "students.small.depth=8",
                f'training.attention="{kernel}"',
            ),
            load_profile("h100"),
        )
        for kernel in ("eager", "sdpa")
    )
    # a softmax and a product of four bytes and a mask of one, for each pair of tokens
    run = tiny_run(tmp_path, "student-only", "axes.image_size=24", "students.small.depth=8")
    tokens = (24 // run.cell.student.patch_size) ** 2 + 1
    kept = 9 * run.cell.training.batch_size * run.cell.student.heads * tokens**2 * 8
    less = shares_of_category(plain, "activations") - shares_of_category(fused, "activations")
    assert less == pytest.approx(kept, rel=0.05)
    assert "fused attention's backward" in fused.columns["caveats"]


def test_counts_of_steps_lie_on_the_host_but_for_a_fused_optimizer(tmp_path):
    h100 = load_profile("h100")
    sizes = {}
    for kernels in ("foreach", "fused"):
        run = tiny_run(tmp_path, "student-only", f'training.optimizer_kernels="{kernels}"')
        made = predict(run, h100)
        sizes[kernels] = shares_of_category(made, "optimizer_state")
        tensors = len(list(session_of(run.cell, CPU, tmp_path).student.parameters()))
    assert sizes["fused"] - sizes["foreach"] == 512 * tensors


def test_a_foreach_optimizer_needs_room_for_all_parameters_at_once(tmp_path):
    run = tiny_run(tmp_path, "student-only", "training.batch_size=1", "students.small.width=64")
    peaks = {}
    for kernels in ("foreach", "fused"):
        peak = exact_peak_events(with_training(run, optimizer_kernels=kernels), CPU_PROFILE)
        peaks[kernels] = peak.allocated
        parameters = sum(s.size for s in peak.shares if s.category == "parameters")
    assert peaks["foreach"] - peaks["fused"] >= parameters / 2


def test_autocast_on_a_card_normalises_in_float32(tmp_path):
    half = torch.ones(2, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.layer_norm(half, (4,)).dtype == torch.bfloat16
        with card_kernels(load_profile("a100")):
            assert F.layer_norm(half, (4,)).dtype == torch.float32
            assert half.softmax(-1).dtype == torch.float32
        assert half.softmax(-1).dtype == torch.bfloat16
    run = tiny_run(tmp_path, "student-only", 'training.precision="bf16"')
    assert "autocast's casts" in predict(run, load_profile("a100")).columns["caveats"]


# --- what fits


@pytest.fixture
def asked(monkeypatch):
    """List the batches that are traced; what a search has traced once, it has at hand."""
    batches = []

    def counting(run, device):
        batches.append(run.cell.training.batch_size)
        return trace(run, device)

    monkeypatch.setattr(trace_module, "trace", counting)
    return batches


@pytest.mark.parametrize(("profile", "method"), [("cpu", "teacher-kd"), ("h100", "embed-kd")])
def test_the_largest_batch_is_the_largest_and_is_found_by_few_traces(
    profile, method, asked, tmp_path
):
    device = load_profile(profile).model_copy(update={"context_bytes": 0})
    run = tiny_run(tmp_path, method, "data.train_images=256", "axes.image_size=24")
    known = TraceCache(device)
    needs = {}
    for batch in (8, 40):
        peaks = replay(known.get(with_training(run, batch_size=batch)), device).peaks.values()
        needs[batch] = max(p.reserved or p.allocated for p in peaks)
    asked.clear()
    traces = TraceCache(device)
    (answer,) = answers([run], device, needs[40])
    found = answer["fit"]
    assert found["fits"]
    assert found["needs_bytes"] == needs[8]
    largest = found["largest_batch"]
    assert 40 <= largest < 256
    assert {largest, largest + 1} <= set(asked), "the answer is that of a trace"
    assert len(asked) == len(set(asked)) <= 5, "the prediction's own trace is one of them"
    for batch, suffices in ((largest, True), (largest + 1, False)):
        sized = traces.get(with_training(run, batch_size=batch))
        assert fits_module._suffices(sized, device, needs[40]) is suffices


def test_cells_that_allocate_alike_share_their_traces(asked, tmp_path):
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    axes = ["axes.batch_size=[4, 8, 16]", "axes.learning_rate=[1e-3, 1e-4]", "axes.alpha2=[0, 1]"]
    matrix = load_matrix(path, assignments=axes, only=["method=embed-kd"])
    made = list(answers(matrix.runs(), CPU_PROFILE, 500_000))
    assert len(made) == 12
    assert all(answer["fit"]["largest_batch"] == 21 for answer in made), made[0]["fit"]
    assert len({answer["columns"]["allocated_peak_bytes"] for answer in made}) == 3
    assert len(asked) == len(set(asked)) <= 6, "of three batches, and of the largest"


def test_cells_that_allocate_alike_are_predicted_once(tmp_path, monkeypatch):
    """Whatever the order of the axes, and each keeps its own settings and key."""
    asked = []

    class Child(prediction._Child):
        def __init__(self, folder, runs, *others):
            asked.extend(run.cell.training.batch_size for run in runs)
            super().__init__(folder, runs, *others)

    monkeypatch.setattr(prediction, "_Child", Child)
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    axes = ["axes.learning_rate=[1e-3, 1e-4, 1e-5]", "axes.batch_size=[4, 8]"]
    matrix = load_matrix(path, assignments=axes, only=["method=embed-kd"])
    made = prediction.predict_matrix(matrix, profile=CPU_PROFILE)
    assert sorted(asked) == [4, 8]
    assert [one.cell["label"] for one in made] == [run.cell.label for run in matrix.runs()]
    assert len({one.run_key for one in made}) == len({one.cell["cell_id"] for one in made}) == 6
    assert len({(one.cell["learning_rate"], one.cell["batch_size"]) for one in made}) == 6
    peaks = {(one.cell["batch_size"], one.cell["allocated_peak_bytes"]) for one in made}
    assert len(peaks) == 2
    assert all(one.rows["memory"] and one.rows["timeline"] for one in made)


def test_a_method_of_others_shares_no_trace_with_other_weights(tmp_path):
    run = tiny_run(tmp_path, "embed-kd")
    assert run.cell.trace_key() == with_training(run, learning_rate=1.0).cell.trace_key()
    other = run.model_copy(update={"cell": run.cell.model_copy(update={"method": "own-kd"})})
    assert other.cell.trace_key() != with_training(other, learning_rate=1.0).cell.trace_key()


def test_nothing_fits_into_nothing_and_everything_into_much(asked, tmp_path):
    traces = TraceCache(CPU_PROFILE)
    run = tiny_run(tmp_path, "student-only")
    found = fit(run, traces, 1000)
    assert (found.fits, found.largest_batch, found.whole_data) == (False, None, False)
    asked.clear()
    found = fit(run, traces, 2**40)
    assert (found.fits, found.largest_batch, found.whole_data) == (True, 64, True)
    assert asked == [64]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 64])
def test_the_search_finds_every_size_from_every_guess(limit):
    for largest in range(limit + 1):
        for guess in range(1, limit + 1):
            looks = []

            def fits(size, largest=largest, looks=looks):
                looks.append(size)
                return size <= largest

            ends = {"low": 0, "high": limit + 1, "limit": limit}
            found = largest_fitting(fits, **ends, guess=lambda low, high, guess=guess: guess)
            assert found == largest
            assert all(1 <= size <= limit for size in looks)
            assert len(looks) <= 14
            if guess == largest:
                assert len(looks) <= 2


def test_the_command_line_tells_what_fits(kdbench, tiny, tmp_path):
    said = kdbench(
        "predict",
        "--matrix",
        tiny,
        *ALONE,
        "--profile",
        "t4",
        "--fits",
        "card",
        "--format",
        "json",
        "--out",
        tmp_path / "results",
    )
    assert said.code == 0
    for record in json.loads(said.out):
        assert record["fits"] is True
        assert (record["largest_batch"], record["whole_data"]) == (64, True)
        assert record["needs_bytes"] > record["reserved_peak_bytes"]


# --- what can go wrong


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--profile", "h1000"], "--profile: no device profile 'h1000'; did you mean 'h100'"),
        (
            ["--fits", "lots", "--profile", "t4"],
            "--fits: expected an amount of memory, found 'lots'",
        ),
        (["--fits", "16", "--profile", "t4"], "--fits: expected an amount of memory, found '16'"),
        (["--fits", "card", "--profile", "cpu"], "--fits: the profile 'cpu' does not say how much"),
        (["--fits", "16gb"], "--fits: whose 16gb? expected a device too, found no --profile; add "),
        (["--fits", "24GB"], "--fits: whose 24GB? expected a device too, found no --profile; add "),
        (["--profile", "h100", "--fits", "1MiB"], "--fits: expected more than the 794,820,608"),
        (["--profile", "gone.toml"], "gone.toml: cannot read the"),
        (["--format", "xml"], "--format: expected one of 'table', 'csv', 'json', found 'xml'"),
    ],
)
def test_bad_input(arguments, told, kdbench, tiny, tmp_path):
    said = kdbench("predict", "--matrix", tiny, *arguments, "--out", tmp_path / "results")
    assert said.code == 2
    assert said.err.startswith(f"kdbench: {told}")
    assert not (tmp_path / "results").exists()


def test_an_amount_of_no_device_names_the_nearest_card_first(kdbench, tiny):
    for amount, first in (("16 GB", "t4"), ("24gib", "rtx4090"), ("40G", "a100-40gb")):
        said = kdbench("predict", tiny, "--fits", amount)
        assert said.code == 2
        assert f"add --profile with one of {first} (" in said.err
        assert "or cpu for the host's memory" in said.err


def test_a_profile_of_ones_own(kdbench, tiny, tmp_path):
    own = tmp_path / "mine.toml"
    own.write_text(
        'title = "my card"\ndevice = "cuda"\ncapacity_bytes = 1_000_000_000\n'
        '[basis]\ncapacity_bytes = "measured: by me"\n'
    )
    fits = ["--profile", own, "--fits", "card", "--out", "r"]
    said = kdbench("predict", "--matrix", tiny, *ALONE, *fits)
    assert said.code == 0
    assert "predicted for my card" in said.out
    own.write_text('title = "my card"\ndevice = "cuda"\ncapacity_bytes = 1\n')
    said = kdbench("predict", "--matrix", tiny, "--profile", own)
    assert said.code == 2
    assert "expected what 'capacity_bytes' rests on, found nothing" in said.err
    own.write_text('title = "x"\ndevice = "cuda"\n[basis]\ncapacity_bytes = "measured: no"\n')
    assert (
        "there is no entry 'capacity_bytes'"
        in kdbench("predict", "--matrix", tiny, "--profile", own).err
    )


def test_every_entry_of_a_profile_says_what_it_rests_on():
    assert {"cpu", "t4", "rtx4090", "a100", "h100", "h200"} <= set(known_profiles())
    for name in known_profiles():
        profile = load_profile(name)
        assert profile.title
        assert profile.name == name
        card = (REPOSITORY / "results" / "reference").glob(f"nvidia-{name}-*/properties.json")
        assert bool(profile.verified) == (name == "cpu" or any(card)), "by what is committed"


def test_a_measured_profile_is_as_its_card_says():
    (told,) = (REPOSITORY / "results" / "reference").glob("nvidia-h100-*/properties.json")
    profile = load_profile("h100")
    assert json.loads(told.read_text())["properties"]["total_memory"] == profile.capacity_bytes
    runs = pd.read_parquet(told.with_name("repeats") / "fig4" / "cells")
    beside = runs["process_peak_bytes"] - runs["reserved_peak_bytes"]
    assert set(beside) == {profile.context_bytes}


def test_what_cannot_be_predicted_is_told_and_the_rest_goes_on(kdbench, tiny, tmp_path):
    said = kdbench(
        "predict",
        "--matrix",
        tiny,
        "--set",
        "axes.compile=[false,true]",
        "--only",
        "method=embed-kd",
        "--out",
        tmp_path / "results",
    )
    assert said.code == 1
    assert "a compiled student cannot be predicted" in said.out
    cells = frame(tmp_path / "results" / "tiny", "cells").set_index("compile")
    assert cells.at[False, "status"] == "ok"
    assert cells.at[True, "status"] == "failed"
    assert cells.at[True, "allocated_peak_bytes"] is pd.NA or pd.isna(
        cells.at[True, "allocated_peak_bytes"]
    )


def test_predicting_again_replaces(kdbench, tiny, tmp_path, monkeypatch):
    """Also what another version of kdbench had predicted, but nothing for another device."""
    results = tmp_path / "results"
    for digest in ("old", "new"):
        monkeypatch.setattr(prediction, "predict_digest", lambda digest=digest: digest)
        assert kdbench("predict", "--matrix", tiny, *ALONE, "--out", results).code == 0
    kept = frame(results / "tiny", "cells")
    assert len(kept) == 1
    kdbench("predict", "--matrix", tiny, *ALONE, "--profile", "t4", "--out", results)
    assert set(frame(results / "tiny", "cells")["run_key"]) > set(kept["run_key"])
    assert len(frame(results / "tiny", "cells")) == 2


def test_a_process_that_dies_is_an_error_not_a_traceback(kdbench, tiny, tmp_path, monkeypatch):
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(
        "import sys, os, signal\n"
        "if 'kdbench.predict' in sys.orig_argv: os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(folder) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    said = kdbench("predict", "--matrix", tiny, "--out", tmp_path / "results")
    assert said.code == 1
    assert "the process that predicts ended at 'teacher-kd/small/8px/dwarf'" in said.err
    assert f"exit code {-signal.SIGKILL}" in said.err
    assert "Traceback" not in said.err


def test_predicted_and_measured_rows_stay_apart(kdbench, tiny, finished, tmp_path):
    import shutil  # noqa: PLC0415

    shutil.copytree(finished, tmp_path / "both")
    said = kdbench("predict", "--matrix", tiny, "--out", tmp_path / "both")
    assert said.code == 0
    assert "predicted for a CPU" in said.out
    said = kdbench("show", tmp_path / "both", "--format", "json")
    rows = json.loads(said.out)
    names = {row["environment_name"] for row in rows}
    assert any(name.startswith("predicted for cpu: torch") for name in names)
    assert len(rows) == 5, "three measured cells and two predicted ones"
