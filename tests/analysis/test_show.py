"""The tables."""

from datetime import timedelta
from io import StringIO

import pandas as pd
import pytest
from rich.console import Console

from kdbench.analysis.cell_tables import render, summary
from kdbench.analysis.results import load_results
from kdbench.common.errors import InputError
from kdbench.common.units import format_interval
from tests.support.analysis_fixtures import (
    GPU,
    STARTED,
    cell_row,
    commit,
    epoch_rows,
    no_numbers,
    paper_rows,
    trained_rows,
)

TEACHER = "teacher-kd/base/32px/vit-large-patch32"


def shown(results, *, width=100, **options):
    console = Console(width=width, record=True, file=StringIO())
    for part in render(results, **options):
        console.print(part)
    return console.export_text()


@pytest.fixture
def paper(tmp_path):
    return load_results(commit(tmp_path, paper_rows()))


def test_ratios_are_to_the_first_teacher_kd_cell(paper):
    frame = summary(paper).set_index("label")
    assert frame["reference"].unique().tolist() == [TEACHER]
    large = frame.loc["embed-kd/large/32px/vit-large-patch32"]
    assert large["parameter_bytes"] == 128_600_000
    assert large["parameter_bytes_ratio"] == pytest.approx(0.1286 / 1.247)
    assert large["allocated_peak_bytes_ratio"] == pytest.approx(2.68 / 2.07)
    assert frame.loc[TEACHER, "epoch_seconds_ratio"] == 1
    text = shown(paper)
    for value in ("1.25 GB", "÷9.7", "×1.29", "~2.82 h", "13.0 s"):
        assert value in text
    assert f"ref: {TEACHER}" in text


def test_another_reference(paper):
    chosen = "embed-kd/large/64px/vit-large-patch32"
    frame = summary(paper, reference=chosen).set_index("label")
    assert frame.loc[TEACHER, "step_seconds_median_ratio"] == pytest.approx(13 / 40)
    assert f"ref: {chosen}" in shown(paper, reference=chosen)


@pytest.mark.parametrize("function", [summary, render])
def test_an_unknown_reference_is_an_error(paper, function):
    with pytest.raises(InputError, match="no cell has the label") as error:
        function(paper, reference=TEACHER.replace("base", "bose"))
    assert f"did you mean '{TEACHER}'" in str(error.value)


def test_a_reference_that_two_cells_share_is_an_error(tmp_path):
    results = load_results(commit(tmp_path, [cell_row(), cell_row(batch_size=32)]))
    with pytest.raises(InputError, match=r"several cells have the label .*batch_size=32"):
        summary(results, reference=TEACHER)
    assert len(summary(results, reference=f"{TEACHER} (batch_size=32)")) == 2


def test_without_a_teacher_kd_cell_the_first_is_the_reference(tmp_path):
    rows = [cell_row("student-only"), cell_row("embed-kd")]
    frame = summary(load_results(commit(tmp_path, rows)))
    assert set(frame["reference"]) == {"embed-kd/base/32px/vit-large-patch32"}


def test_what_is_doubtful_is_marked_and_explained(tmp_path):
    by = "others kept 1.3 of 2 processors busy"
    contended = {"contended": True, "contention": by}
    rows = [
        cell_row(contended=False, unstable=False, suspended_steps=3),
        *[cell_row("embed-kd", repeat=n, unstable=n == 0, **contended) for n in range(2)],
        cell_row("student-only"),  # nothing is known of it
        cell_row("student-only", "large", **no_numbers("oom", "no memory") | contended),
    ]
    results = load_results(commit(tmp_path, rows))
    frame = summary(results).set_index("label")
    assert frame["contended"].tolist() == [0, 2, 0, 0], "a run without figures casts no flag"
    assert frame["unstable"].tolist() == [0, 1, 0, 0]
    assert frame["suspended"].tolist() == [1, 0, 0, 0]
    assert frame["contention"].dropna().tolist() == [by]
    text = shown(results, width=300)
    (name,) = [label for label in frame.index if label.startswith("embed-kd")]
    assert "2 contended" in text
    assert "1 unstable" in text
    assert f"memory is not affected: {name} ({by})" in text
    assert f"the median may mislead: {name}\n" in text + "\n"
    assert f"such steps are in no figure: {frame.index[0]}\n" in text
    text = shown(load_results(commit(tmp_path / "clean", paper_rows())))
    assert "contended" not in text
    assert "suspended" not in text


def test_one_word_is_enough_where_all_runs_are_doubtful(tmp_path):
    rows = [
        cell_row(method, repeat=n, contended=True, contention=f"{n} of 2 processors busy")
        for method in ("teacher-kd", "embed-kd", "student-only")
        for n in range(3)
    ]
    text = shown(load_results(commit(tmp_path / "all", rows)), width=300)
    assert "all 9 runs were contended: others were at work" in text
    assert "memory is not affected\n" in text
    rows = [
        cell_row("student-only", f"s{n:02}", contended=n > 0, contention="load") for n in range(12)
    ]
    text = shown(load_results(commit(tmp_path / "most", rows)), width=300)
    (told,) = [line for line in text.splitlines() if line.startswith("contended: others")]
    assert told.count("(load)") == 6
    assert told.rstrip().endswith(" and 5 more")


@pytest.mark.parametrize(
    ("width", "least"), [(60, "step"), (80, "bytes"), (100, "sation"), (300, "sation")]
)
def test_a_narrow_terminal_has_fewer_columns_and_all_labels(width, least, tmp_path):
    known = {"precompute_seconds": 0.5, "utilisation": 0.3, "unstable": True}
    known |= {"host_peak_bytes": 7 * 10**8, "accuracy": 0.9}
    rows = [cell_row("embed-kd", repeat=n, **known) for n in range(3)]
    text = shown(load_results(commit(tmp_path, rows)), width=width)
    assert all(len(line) <= width for line in text.splitlines())
    table, _, notes = text.partition("\n\n")
    assert "embed-kd/" in table
    assert "3 unstable" in table
    assert least in table
    wide = width >= 100
    assert ("sation" in table) is wide
    assert ("too narrow for all: utilisation" in " ".join(notes.split())) is not wide


def test_metrics_that_share_a_source_do_not_unsay_it(tmp_path):
    frame = summary(load_results(commit(tmp_path, [cell_row()])))
    assert frame["epoch_seconds_kind"].tolist() == ["extrapolated"]
    assert frame["energy_epoch_joules"].isna().all()


def test_missing_is_null_and_a_dash_but_never_0(tmp_path):
    failed = cell_row("embed-kd", **no_numbers("oom", "out of memory"))
    results = load_results(commit(tmp_path, [cell_row(), failed]))
    row = summary(results).set_index("method").loc["embed-kd"]
    for column in ("step_seconds_median", "parameter_bytes", "parameter_bytes_ratio", "accuracy"):
        assert pd.isna(row[column])
    assert (row["status"], row["error"], row["finished"]) == ("oom", "out of memory", 0)
    text = shown(results)
    assert "oom: embed-kd/base/32px/vit-large-patch32: out of memory" in text
    line = next(line for line in text.splitlines() if line.startswith("embed-kd"))
    assert line.split()[2:] == ["–"] * 5


def test_some_failed_runs_are_counted(tmp_path):
    rows = [cell_row(), cell_row(repeat=1, **no_numbers("timeout", "stopped after 60 s"))]
    results = load_results(commit(tmp_path, rows))
    assert summary(results)["status"].tolist() == ["1 ok, 1 timeout"]
    assert "timeout: teacher-kd" in shown(results)


@pytest.mark.parametrize(("step", "steps", "told"), [(0.75, 2000, "2,000 steps"), (2, None, "nev")])
def test_when_the_precompute_pays(tmp_path, step, steps, told):
    rows = [cell_row(), cell_row("embed-kd", step_seconds_median=float(step))]
    results = load_results(commit(tmp_path, rows))
    paid = summary(results).set_index("method").loc["embed-kd", "payback_steps"]
    assert (pd.isna(paid) and steps is None) or paid == steps
    assert told in shown(results)


def test_the_payback_is_told_in_steps_and_in_epochs(tmp_path):
    rows = [
        cell_row(epoch_seconds=781.0),
        cell_row("embed-kd", step_seconds_median=0.75, epoch_seconds=0.75 * 781),
    ]
    results = load_results(commit(tmp_path, rows))
    paid = summary(results).set_index("method").loc["embed-kd"]
    assert (paid["payback_steps"], paid["payback_epochs"]) == (2000, pytest.approx(2000 / 781))
    assert "(~8.33 min) pays after ~2,000 steps (~2.6 epochs) against teacher-kd" in " ".join(
        shown(results).split()
    )


def test_the_payback_of_trainings_goes_by_whole_epochs(tmp_path):
    # 22 steps take 2.2 s with what lies between them: the median step alone would say 1 s less.
    times = {"epoch_seconds_kind": "measured", "precompute_seconds_kind": "measured"}
    rows = [
        cell_row(mode="train", epoch_seconds=2.2, step_seconds_median=0.05, **times),
        cell_row(
            "embed-kd",
            mode="train",
            epoch_seconds=1.1,
            step_seconds_median=0.05,
            precompute_seconds=3.3,
            **{**times, "label": "mine"},
        ),
    ]
    results = load_results(commit(tmp_path, rows, epochs=epoch_rows(epochs=2, steps=22)))
    paid = summary(results).set_index("method").loc["embed-kd"]
    assert paid["payback_epochs"] == pytest.approx(3)
    assert paid["payback_steps"] == pytest.approx(66)
    assert "mine: its precompute (3.30 s) pays after 66 steps (3.0 epochs)" in " ".join(
        shown(results).split()
    )


def test_any_method_with_a_precompute_is_set_against_one_without(tmp_path):
    once = {"precompute_seconds": 100.0, "precompute_seconds_kind": "measured"}
    rows = [
        cell_row(),
        cell_row("vanilla-kd", step_seconds_median=5.0),
        cell_row("mine", step_seconds_median=0.5, **once),
    ]
    results = load_results(commit(tmp_path, rows))
    frame = summary(results).set_index("method")
    assert frame.loc["mine", "payback_steps"] == 200
    assert frame.loc[["teacher-kd", "vanilla-kd"], "payback_steps"].isna().all()


def test_no_payback_without_the_same_cell_by_both_methods(paper):
    assert summary(paper)["payback_steps"].isna().all()
    assert "precompute (" not in shown(paper)


def test_marks_and_sources_are_explained(paper):
    text = shown(paper)
    for note in (
        "* shape inferred from the memory the paper reports",
        "~ extrapolated",
        "Teacher weights are random",
        "ledger: one accounting step",
        "vmhwm: the kernel's exact high-water mark",
    ):
        assert note in text
    assert "patch32*" in text


def test_environments_get_a_table_each(tmp_path):
    results = load_results(commit(tmp_path, [*paper_rows(), *paper_rows(**GPU)]))
    assert len(render(results)) == 2
    assert len(summary(results)) == 8
    assert summary(results)["environment_id"].nunique() == 2
    assert "GPU" not in shown(load_results(tmp_path, environment="xeon"))


def test_the_widest_table_fits_a_terminal(tmp_path):
    gpu = {**GPU, "process_peak_bytes": 10**9, "device_peak_bytes": 10**9}
    rows = paper_rows(mode="train", accuracy=0.5, **gpu)
    text = shown(load_results(commit(tmp_path, rows)))
    assert "large/64px/" in text
    assert "50.0 %" in text
    assert "…" not in text


def test_labels_are_no_markup_and_cannot_control_the_terminal(tmp_path):
    rows = [cell_row(label="[red]x[/red]", **no_numbers("failed", "bad\x1b[31m [bold]y[/bold]\nz"))]
    results = load_results(commit(tmp_path, rows))
    text = shown(results)
    assert "\x1b" not in text
    assert "[red]x[/red]" in text.replace("\n", "")
    assert r"bad\x1b[31m [bold]y[/bold]\nz" in text


def test_runs_of_a_training_are_told(tmp_path):
    text = shown(load_results(commit(tmp_path, trained_rows())))
    assert "3 runs per cell, of which the median is shown" in text
    assert "94.9 %" in text


def test_the_interval_over_processes_is_below_the_number(tmp_path):
    seconds = [0.270, 0.264, 0.266, 0.268, 0.267, 0.271]
    rows = [cell_row(repeat=n, step_seconds_median=value) for n, value in enumerate(seconds)]
    few = cell_row("embed-kd", step_seconds_median=0.1)
    results = load_results(commit(tmp_path, [*rows, few]))
    text = shown(results)
    assert "264–271" in text
    assert "below it its 95 % interval over them" in " ".join(text.split())
    row = summary(results).set_index("method").loc["teacher-kd"]
    assert (row["step_seconds_median_low"], row["step_seconds_median_high"]) == (0.264, 0.271)


def seconds(*values, method="embed-kd", **changes):
    """Make rows of a cell's repeats, by their epochs."""
    return [
        cell_row(method, repeat=n, epoch_seconds=value, **changes) for n, value in enumerate(values)
    ]


def test_runs_that_disagree_are_shown_as_a_range_and_have_no_ratio(tmp_path):
    rows = [*seconds(0.84, 7.75, 11.45), *seconds(13.0, 13.4, 13.9, method="teacher-kd")]
    results = load_results(commit(tmp_path, rows))
    frame = summary(results).set_index("method")
    embed = frame.loc["embed-kd"]
    told = [f"epoch_seconds{end}" for end in ("", "_n", "_min", "_max", "_marks")]
    assert embed[told].tolist() == [7.75, 3, 0.84, 11.45, "disagree"]
    assert pd.isna(embed["epoch_seconds_ratio"])
    assert pd.isna(frame.loc["teacher-kd", "epoch_seconds_marks"])
    assert embed["step_seconds_median_ratio"] == 1, "what they agree about has one"
    for width in (80, 100):
        text = shown(results, width=width)
        assert "~7.75 s?" in text
        assert "0.84 to 11.4" in text
        assert "13.0 to 13.9" in text
        assert "÷1.73" not in text
        assert "? no ratio is drawn: its runs, or its interval, span more than 18 %" in " ".join(
            text.split()
        )


@pytest.mark.parametrize(
    ("contended", "value", "marks"),
    [((), 2.0, None), ((0, 2), 2.0, None), ((0,), 2.05, None), ((0, 1, 2), 2.0, "contended")],
)
def test_times_are_of_runs_that_were_not_contended(tmp_path, contended, value, marks):
    rows = seconds(1.9, 2.0, 2.1)
    for n in contended:
        rows[n] |= {"contended": True, "contention": "others kept 1.3 of 2 processors busy"}
    results = load_results(commit(tmp_path, [*rows, *seconds(4.0, method="teacher-kd")]))
    row = summary(results).set_index("method").loc["embed-kd"]
    assert row["epoch_seconds"] == pytest.approx(value)
    assert row["allocated_peak_bytes_ratio"] == 1, "memory is not affected"
    assert row["finished"] == 3
    if marks:
        assert row["epoch_seconds_marks"] == marks
        assert pd.isna(row["epoch_seconds_ratio"])
        assert "others were at work in every run behind it" in shown(results)
    else:
        assert row["epoch_seconds_ratio"] == pytest.approx(value / 4)
        assert row["epoch_seconds_n"] == 3 - len(contended)


def test_a_marked_reference_gives_no_ratio_either(tmp_path):
    rows = seconds(4.0, method="teacher-kd", contended=True, contention="x") + seconds(2.0)
    frame = summary(load_results(commit(tmp_path, rows)))
    assert frame["epoch_seconds_ratio"].isna().all()
    assert frame["parameter_bytes_ratio"].tolist() == [1, 1]


def measured(rate, *, flops=2e9, steady=True, contended=False, method="embed-kd", **changes):
    """Make a row with a step of 1 s and a yardstick of its own."""
    rates = {"rates_steady": steady, "rates_contended": contended}
    return cell_row(
        method,
        flops_step=flops,
        matmul_flops_per_second=rate,
        utilisation=flops / rate,
        **rates,
        **changes,
    )


def test_utilisation_is_of_the_best_rate_that_any_run_of_the_machine_reached(tmp_path):
    rows = [
        measured(2.8e9, contended=True, method="teacher-kd"),
        measured(4e9, steady=False),
        measured(8e9, method="student-only"),
        measured(5e9, precision="bf16", label="bf16"),
        measured(3e9, threads=4, label="elsewhere"),
    ]
    results = load_results(commit(tmp_path, rows))
    frame = summary(results).set_index("label")
    found = frame["utilisation"].to_dict()
    assert (found.pop("bf16"), found.pop("elsewhere")) == pytest.approx((0.4, 2 / 3))
    assert list(found.values()) == [0.25] * 3
    assert sorted(frame["utilisation_ratio"].tolist())[:3] == [1, 1, 1]
    assert frame["utilisation_marks"].isna().all()
    text = " ".join(shown(results, width=200).split())
    assert "utilisation: of 8.00 GFLOP/s in fp32" in text
    # a filter changes what is shown, and not what it is held against
    alone = summary(load_results(tmp_path, only=["method=teacher-kd"]))
    assert alone["utilisation"].tolist() == [0.25]


@pytest.mark.parametrize(
    "marks",
    [{"contended": True}, {"steady": False}, {"steady": None, "contended": None}],
    ids=["contended", "unsteady", "of an earlier version"],
)
def test_a_yardstick_that_is_not_sure_gives_no_ratio(tmp_path, marks):
    rows = [measured(8e9, method="teacher-kd", **marks), measured(8e9, flops=4e9, **marks)]
    results = load_results(commit(tmp_path, rows))
    frame = summary(results)
    assert frame["utilisation"].tolist() == [0.25, 0.5]
    assert frame["utilisation_ratio"].isna().all()
    assert set(frame["utilisation_marks"]) == {"yardstick unsure"}
    text = shown(results, width=200)
    assert "25.0 %?" in text
    assert "no run here measured the yardstick steady" in text


def test_a_step_that_beats_the_yardstick_says_that_it_is_off(tmp_path):
    rows = [measured(2.8e9, flops=1e9, method="teacher-kd"), measured(2.8e9, flops=8.5e9)]
    results = load_results(commit(tmp_path, rows))
    frame = summary(results)
    assert frame["utilisation"].isna().all(), "no cell's is right"
    assert set(frame["utilisation_marks"]) == {"yardstick off"}
    text = " ".join(shown(results, width=200).split())
    assert "304" not in text
    assert "utilisation: off, since it would be above 100 %" in text


def test_profiled_and_trained_cells_are_apart_and_have_no_ratio(tmp_path):
    rows = [cell_row(), cell_row("embed-kd")]
    trained = [row | {"mode": "train", "epoch_seconds": 99.0} for row in rows]
    results = load_results(commit(tmp_path, [*rows, *trained, cell_row("x", mode="train")]))
    frame = summary(results)
    assert frame["mode"].tolist() == ["profile"] * 2 + ["train"] * 3
    assert frame["epoch_seconds_ratio"].tolist() == pytest.approx([1, 1, 1, 1, 781 / 99])
    tables = render(results)
    assert len(tables) == 2
    text = shown(results)
    assert "fig4, profiled, on cpu" in text
    assert "fig4, trained, on cpu" in text
    only = summary(
        load_results(tmp_path, only=["method=teacher-kd,x"]),
        reference="x/base/32px/vit-large-patch32",
    )
    assert only["epoch_seconds_ratio"].isna().tolist() == [True, False, False]


LATER = {"started_at": STARTED + timedelta(days=1)}


@pytest.mark.parametrize(
    ("failed", "stays"),
    [
        ({}, False),
        ({"torch_version": "2.10.0"}, False),
        ({"threads": None}, False),
        ({"threads": 7, "cell_id": "another"}, False),
        ({"batch_size": 32}, False),
        ({"status": "oom"}, False),
        ({"status": "oom", "batch_size": 128}, True),
        ({"cpu_model": "another machine"}, True),
        ({**GPU}, True),
        ({"mode": "train"}, True),
        ({"seed": 1}, True),
        ({"started_at": STARTED + timedelta(days=2)}, True),
    ],
)
def test_a_failed_attempt_that_was_retried_is_not_shown(tmp_path, failed, stays):
    attempt = cell_row("embed-kd", **(no_numbers("failed", "it was wrong") | failed))
    results = load_results(commit(tmp_path, [cell_row(), attempt, cell_row("embed-kd", **LATER)]))
    text, frame = " ".join(shown(results).split()), summary(results)
    assert ("it was wrong" in text) is stays
    assert ("1 earlier attempt that failed is not shown" in text) is not stays
    assert frame["retried"].sum() == (not stays)
    assert frame["error"].notna().any() == stays
    assert len(results.cells) == 3, "the store and its rows keep it"
    asked = load_results(tmp_path, only=[f"status={attempt['status']}"])
    assert "it was wrong" in shown(asked)


def test_the_fastest_step_has_a_column(tmp_path):
    rows = [cell_row(step_seconds_fastest=0.8), cell_row("embed-kd", step_seconds_fastest=0.4)]
    results = load_results(commit(tmp_path, rows))
    assert summary(results)["step_seconds_fastest_ratio"].tolist() == [1, 0.5]
    assert "fastest" in shown(results)
    assert "800 ms" in shown(results)


def test_a_payback_of_runs_that_disagree_is_a_range_or_cannot_be_told(tmp_path):
    def told(root, *, fast, **changes):
        rows = [cell_row(repeat=n) for n in range(2)]
        rows += [
            cell_row("embed-kd", repeat=n, step_seconds_median=value, **changes)
            for n, value in enumerate(fast)
        ]
        results = load_results(commit(tmp_path / root, rows))
        row = summary(results).set_index("method").loc["embed-kd"]
        ends = [row[f"payback_steps{end}"] for end in ("", "_low", "_high")]
        return [None if pd.isna(end) else end for end in ends], " ".join(shown(results).split())

    ends, text = told("agree", fast=(0.5, 0.51))
    assert ends == pytest.approx([500 / 0.495, 1000, 500 / 0.49])
    assert "pays after ~1,011 steps" in text
    ends, text = told("range", fast=(0.25, 0.75))
    assert ends == [None, pytest.approx(500 / 0.75), pytest.approx(2000)]
    assert "pays after ~667 to 2,000 steps" in text
    ends, text = told("open", fast=(0.5, 3.0))
    assert ends == [None, pytest.approx(1000), None]
    assert "at the earliest against teacher-kd, or never" in text
    ends, text = told("contended", fast=(0.5, 0.51), contended=True, contention="x")
    assert ends == [None] * 3
    assert "cannot be said to pay against teacher-kd" in text


def test_an_interval_that_the_digits_do_not_show_is_left_out():
    assert format_interval((0.2641, 0.2709), 0.267, "seconds") == "264–271"
    assert format_interval((0.9, 1.1), 1.0, "seconds") == "0.9–1.10", "in the unit of the value"
    assert format_interval((1.249e9, 1.251e9), 1.25e9, "bytes") == ""


def test_without_an_interval_none_is_spoken_of(paper):
    assert "interval" not in shown(paper)


def test_a_precompute_that_peaks_above_the_step_is_told(tmp_path):
    higher = cell_row("embed-kd", precompute_peak_bytes=3_000_000_000)
    loaded = load_results(commit(tmp_path, [cell_row(), higher, cell_row("embed-kd", "large")]))
    text = " ".join(shown(loaded, width=200).split())
    named = "embed-kd/base/32px/vit-large-patch32 (3.00 GB)"
    assert f"before the first step, peaks higher than a step: {named} Teacher" in text
    assert summary(loaded)["precompute_peak_bytes"].max() == 3_000_000_000


def test_random_teachers_are_told_apart_from_others_of_their_name(tmp_path):
    pretrained = cell_row("embed-kd", teacher_weights="pretrained")
    loaded = load_results(commit(tmp_path, [cell_row(), pretrained]))
    assert "Teacher weights of vit-large-patch32 (in some cells) are random" in shown(loaded)


@pytest.mark.parametrize("memory", [False, True])
def test_what_is_predicted_was_neither_profiled_nor_run(tmp_path, kdbench, memory):
    rows = paper_rows(source="predicted", profile="h100")
    held = {"stage": "steady", "category": "inputs", "module": None, "bytes": 9, "blocks": 1}
    commit(tmp_path, rows, memory=[held])
    text = kdbench("show", tmp_path, *(["--memory"] if memory else [])).out
    assert "predicted for h100" in text
    assert "profiled" not in text
    assert "run per cell" not in text
