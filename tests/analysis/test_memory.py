"""Where memory is at the peak, and how a step comes to it: tables and figures."""

import json
from io import StringIO

import numpy as np
import pandas as pd
import pytest

from kdbench.analysis.breakdown import NO_MODULE, STACK
from kdbench.analysis.figures import FIGURES
from kdbench.analysis.figures.page import draw_page
from kdbench.analysis.figures.style import CATEGORY_COLOURS, drawing
from kdbench.analysis.figures.timeline import course
from kdbench.analysis.plot import plot
from kdbench.analysis.results import load_results
from kdbench.common.errors import InputError
from kdbench.store.schema import MEMORY_CATEGORIES
from tests.support.analysis_fixtures import (
    GPU,
    cell_row,
    commit,
    misplaced,
    paper_rows,
    sheet_of,
    written_texts,
)

MB = 10**6


def memory_rows():
    """A peak of 100 MB, half of it in one module."""
    shares = [
        ("activations", "student.blocks.0", 50),
        ("activations", None, 10),
        ("parameters", "student.blocks.0", 20),
        ("teacher", "teacher.encoder", 16),
        ("optimizer_state", "optimizer", 4),
    ]
    return [
        {"stage": "steady", "category": category, "module": module, "bytes": size * MB, "blocks": 2}
        for category, module, size in shares
    ]


def timeline_rows():
    """Parameters are there, activations come and go."""
    rows = [
        {"moment": 0, "part": "start", "category": name, "live_bytes": size * MB}
        for name, size in (("activations", 0), ("parameters", 40))
    ]
    for moment, (part, size) in enumerate(
        [("data", 1), *[("forward", n) for n in range(2, 60)], ("backward", 30), ("optimizer", 0)],
        start=1,
    ):
        row = {"moment": moment, "part": part, "category": "activations", "live_bytes": size * MB}
        rows.append(row)
    return rows


def committed(root, rows, **changes):
    tables = {"memory": memory_rows(), "timeline": timeline_rows()} | changes
    return commit(root, rows, **tables)


def test_every_category_has_its_place_and_its_colour():
    assert sorted(STACK) == sorted(CATEGORY_COLOURS) == sorted(MEMORY_CATEGORIES)
    assert len(set(CATEGORY_COLOURS.values())) == len(STACK)


# --- kdbench show --memory


def test_categories_and_modules_with_their_shares(kdbench, tmp_path):
    committed(tmp_path, [cell_row(unattributed_bytes=MB)])
    said = kdbench("show", tmp_path, "--memory", "--format", "csv")
    assert said.code == 0, said
    frame = pd.read_csv(StringIO(said.out), keep_default_na=False)
    parts = {(row["kind"], row["part"]): row for row in frame.to_dict("records")}
    assert {part: row["share"] for (kind, part), row in parts.items() if kind == "category"} == {
        "parameters": 0.2,
        "optimizer_state": 0.04,
        "teacher": 0.16,
        "activations": 0.6,
    }
    modules = [row for row in frame.to_dict("records") if row["kind"] == "module"]
    assert [(row["part"], row["share"]) for row in modules] == [
        ("student.blocks.0", 0.7),
        ("teacher.encoder", 0.16),
        (NO_MODULE, 0.1),
        ("optimizer", 0.04),
    ]
    assert modules[0]["bytes"] == 70 * MB
    assert parts["unattributed", ""]["share"] == 0.01
    assert ("scratch", "") not in parts, "a run that does not tell it"
    told = json.loads(kdbench("show", tmp_path, "--memory", "--format", "json").out)
    assert [row["bytes"] for row in told] == frame["bytes"].tolist()
    assert told[-1]["part"] is None, "missing is null"


def test_what_of_the_unattributed_was_scratch(kdbench, tmp_path):
    beyond = {"unattributed_bytes": 3 * MB, "unattributed_scratch_bytes": 2 * MB}
    committed(tmp_path, [cell_row(**beyond)])
    said = kdbench("show", tmp_path, "--memory", "--format", "json")
    kinds = {row["kind"]: (row["bytes"], row["share"]) for row in json.loads(said.out)}
    assert kinds["unattributed"] == (3 * MB, 0.03)
    assert kinds["scratch"] == (2 * MB, 0.02)
    table = kdbench("show", tmp_path, "--memory").out.splitlines()
    at = next(n for n, line in enumerate(table) if "unattributed, beyond the peak" in line)
    assert "of it scratch within operations" in table[at + 1]
    assert "2.00 MB" in table[at + 1]
    _, texts = drawn(tmp_path, "memory")
    assert "of it scratch within operations, up to 2.00 MB" in " ".join(texts)


def test_as_a_table(kdbench, tmp_path):
    many = [
        {
            "stage": "steady",
            "category": "activations",
            "module": f"m{n:02}",
            "bytes": n * MB,
            "blocks": 1,
        }
        for n in range(1, 15)
    ]
    committed(tmp_path, [cell_row()], memory=many)
    said = kdbench("show", tmp_path, "--memory")
    assert said.code == 0, said
    assert "105 MB at the peak of a step" in said.out
    assert "m14" in said.out
    assert "m05" in said.out
    assert "m04" not in said.out, "the ten with most bytes"
    assert "4 more modules hold less" in said.out
    assert "unattributed" not in said.out, "no second source told"


def test_layers_of_one_kind_are_told_in_one(kdbench, tmp_path):
    modules = [f"student.blocks.{n}.{part}" for n in range(6) for part in ("attention", "mlp")]
    modules += ["student.head", *(f"teacher.layers.{n}" for n in range(12))]
    many = [
        {"stage": "steady", "category": "activations", "module": name, "bytes": 2 * MB, "blocks": 1}
        for name in modules
    ]
    committed(tmp_path, [cell_row()], memory=many)
    told = [
        " ".join(line.split()) for line in kdbench("show", tmp_path, "--memory").out.split("\n")
    ]
    assert "student.blocks.*.attention (6 of them) 12.0 MB 24.0 % 6" in told
    assert "student.blocks.*.mlp (6 of them) 12.0 MB 24.0 % 6" in told
    assert "teacher.layers.* (12 of them) 24.0 MB 48.0 % 12" in told
    assert "student.head 2.00 MB 4.0 % 1" in told
    assert "more modules" not in " ".join(told)


def test_a_compiled_cell_is_named_as_missing(kdbench, tmp_path):
    committed(tmp_path, [cell_row()])
    rows = [cell_row("embed-kd", compile=True, started_at=cell_row()["started_at"])]
    commit(tmp_path, rows)
    said = kdbench("show", tmp_path, "--memory")
    assert "no ledger sees into a compiled student: embed-kd/base/32px" in said.out
    (path,) = plot(load_results(tmp_path), figure="memory", formats=("svg",))
    assert "No ledger sees into a compiled student" in path.read_text()


def test_what_it_cannot_show_is_one_error(kdbench, tmp_path):
    commit(tmp_path, [cell_row()])
    said = kdbench("show", tmp_path, "--memory")
    assert (said.code, said.out) == (2, "")
    assert "--memory: no run that finished has a ledger's rows of memory" in said.err
    said = kdbench("show", tmp_path, "--memory", "--reference", "x")
    assert said.code == 2
    assert "--reference: --memory shows no ratios" in said.err


def test_a_real_run_comes_to_its_peak(kdbench, finished, tmp_path):
    said = kdbench("show", finished, "--memory", "--format", "csv")
    frame = pd.read_csv(StringIO(said.out))
    sums = frame[frame["kind"] == "category"].groupby("label")["bytes"].sum()
    cells = pd.read_parquet(finished / "tiny/cells").set_index("label")
    assert sums.to_dict() == cells["allocated_peak_bytes"].to_dict()
    figures = ("--figure", "timeline", "--format", "svg", "--out", tmp_path / "figures")
    written = kdbench("plot", finished, *figures)
    assert written.code == 0, written


# --- figures


def drawn(root, name):
    with drawing():
        figure = draw_page(FIGURES[name].plan(sheet_of(root)))
        assert misplaced(figure) == []
        return figure, [text for text, _ in written_texts(figure)]


LONG = cell_row(
    "embed-kd",
    "a-student-with-a-name-that-goes-on-and-on",
    32,
    "a-teacher-just-as-long",
    batch_size=8,
)


@pytest.mark.parametrize("name", ["memory", "timeline"])
@pytest.mark.parametrize(
    "rows",
    [
        paper_rows(runs=2),
        [cell_row()],
        [LONG, cell_row("student-only")],
        paper_rows(**GPU, unattributed_bytes=20 * MB),
    ],
    ids=["paper", "one", "long", "card"],
)
def test_every_text_lies_inside_the_canvas_and_on_no_other(tmp_path, name, rows):
    drawn(committed(tmp_path, rows), name)


def test_the_bars_are_the_categories(tmp_path):
    figure, texts = drawn(committed(tmp_path, [cell_row(unattributed_bytes=25 * MB)]), "memory")
    widths = [round(bar.get_width(), 6) for bar in figure.axes[0].patches]
    assert widths == [20, 4, 16, 60, 25], "in the order of the stack, the rest behind"
    hatched = [bar.get_hatch() is not None for bar in figure.axes[0].patches]
    assert hatched == [False] * 4 + [True]
    assert {"125 MB", "48 %", "optimizer state", "unattributed"} <= set(texts)


def test_a_few_bytes_are_told_and_not_drawn(tmp_path):
    figure, texts = drawn(committed(tmp_path, [cell_row(unattributed_bytes=96)]), "memory")
    assert len(figure.axes[0].patches) == 4
    assert "unattributed" not in texts
    assert "torch's profiler counts beyond the ledger, 96 B" in " ".join(texts)


def test_a_course_holds_what_was_told_last(tmp_path):
    group = sheet_of(committed(tmp_path, [cell_row()])).groups[0]
    one = course(group, pd.DataFrame(timeline_rows()))
    totals = [40, 41, *range(42, 100), 70, 40]
    assert one.totals.tolist() == [size * MB for size in totals]
    assert one.peak == 59
    assert one.parts == [
        ("data", 1, 2),
        ("forward", 2, 60),
        ("backward", 60, 61),
        ("optimizer", 61, 62),
    ]


def test_the_timeline_marks_the_peak_and_names_the_parts(tmp_path):
    figure, texts = drawn(committed(tmp_path, [cell_row()]), "timeline")
    assert "peak 99.0 MB, in forward" in texts
    assert "forward" in texts
    assert "data" not in texts, "too narrow"
    assert "allocations and frees, in their order" in texts
    (mark,) = (line for line in figure.axes[0].lines if line.get_marker() == "v")
    assert np.allclose(mark.get_xydata(), [[59.5, 99]])


@pytest.mark.parametrize("name", ["memory", "timeline"])
def test_without_a_ledger_there_is_no_figure(tmp_path, name):
    results = load_results(commit(tmp_path, [cell_row(compile=True)]))
    with pytest.raises(InputError, match=f"{name}: no run that finished has a ledger's"):
        plot(results, figure=name)


def test_what_is_shown_is_not_named_as_missing(kdbench, tmp_path):
    committed(tmp_path, [cell_row()])
    said = kdbench("show", tmp_path, "--memory")
    assert said.code == 0
    assert "no rows of memory" not in said.out
