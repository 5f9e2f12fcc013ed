"""The tables."""

from io import StringIO

import pandas as pd
import pytest
from rich.console import Console

from kdbench.analysis.results import load_results
from kdbench.analysis.show import render, summary
from kdbench.errors import InputError
from kdbench.units import format_interval
from tests.analysis_fixtures import (
    GPU,
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
    assert frame["contended"].tolist() == [0, 2, 0, 0], "a run without figures casts no doubt"
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
    rows = [
        cell_row(label="[red]x[/red]", **no_numbers("failed", "bad\x1b[31m [bold]y[/bold]\nz")),
    ]
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


def test_an_interval_that_the_digits_do_not_show_is_left_out():
    assert format_interval((0.2641, 0.2709), 0.267, "seconds") == "264–271"
    assert format_interval((0.9, 1.1), 1.0, "seconds") == "0.9–1.10", "in the unit of the value"
    assert format_interval((1.249e9, 1.251e9), 1.25e9, "bytes") == ""


def test_without_an_interval_none_is_spoken_of(paper):
    assert "interval" not in shown(paper)
