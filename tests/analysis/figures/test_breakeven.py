"""Cumulative cost against epochs, and where a precompute has paid."""

import pytest

from kdbench.analysis.figures import FIGURES
from kdbench.analysis.figures.breakeven import choose_axis, families
from kdbench.analysis.figures.page import draw_page
from kdbench.analysis.figures.style import drawing
from tests.support.analysis_fixtures import (
    GPU,
    cell_row,
    commit,
    epoch_rows,
    misplaced,
    paper_rows,
    sheet_of,
    sweep_rows,
    written_texts,
)

KIND = FIGURES["breakeven"]


def pair(*, once=781.0, fast=0.5, epochs=200, method="embed-kd", **changes):
    """Teacher-KD at 1 s per step, and a method with a precompute; 781 steps an epoch."""
    kind = {"precompute_seconds": once, "precompute_seconds_kind": "extrapolated"}
    times = {"step_seconds_median": fast, "epoch_seconds": 781 * fast}
    return [
        cell_row(epochs=epochs, **changes),
        cell_row(method, epochs=epochs, **kind, **times, **changes),
    ]


def drawn(root, rows, **tables):
    with drawing():
        figure = draw_page(KIND.plan(sheet_of(commit(root, rows, **tables))))
        assert misplaced(figure) == []
        return figure, " ".join(text for text, _ in written_texts(figure))


def marks(figure, panel=0):
    """Where the break-even points stand."""
    lines = figure.axes[panel].get_lines()
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in lines
        if len(line.get_xdata()) == 1
    ]


def test_the_break_even_is_marked_where_the_lines_cross(tmp_path):
    figure, text = drawn(tmp_path, pair())
    teacher, embed = (line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2)
    # 781 s over 0.5 s a step: 1562 steps, 2 epochs, 1562 s = 26.03 min
    ((epochs, cost),) = marks(figure)
    assert (epochs, cost) == (pytest.approx(2), pytest.approx(1562 / 60))
    assert next(iter(teacher.get_ydata())) == 0
    assert next(iter(embed.get_ydata())) == pytest.approx(781 / 60)
    assert figure.axes[0].get_xlim() == (0, pytest.approx(4.4))
    assert "Embed-KD: ~13.0 min of precompute pays after ~1,562 steps (~2.0 epochs)" in " ".join(
        text.split()
    )
    assert "Dashed: the median step times the steps" in text


def test_a_step_that_is_not_faster_never_pays(tmp_path):
    figure, text = drawn(tmp_path, pair(fast=1.5))
    assert marks(figure) == []
    assert figure.axes[0].get_xlim() == (0, 200)
    assert "never pays" in text


def test_what_pays_only_after_the_training_is_said_and_not_drawn(tmp_path):
    figure, text = drawn(tmp_path, pair(epochs=1))
    assert marks(figure) == []
    assert figure.axes[0].get_xlim() == (0, 1)
    assert "(~2.0 epochs), beyond the training's 1 epochs" in " ".join(text.split())


def test_what_pays_within_the_first_epoch_is_drawn_in_steps(tmp_path):
    figure, text = drawn(tmp_path, pair(once=10.0))
    assert marks(figure) == [(pytest.approx(20), pytest.approx(20))]
    assert "optimizer steps" in text
    assert "after ~20 steps (~0.03 epochs)" in " ".join(text.split())


def test_trainings_go_by_the_epochs_that_were_measured(tmp_path):
    kind = {"epoch_seconds_kind": "measured", "precompute_seconds_kind": "measured"}
    rows = pair(once=50.0, epochs=6)
    for row, seconds in zip(rows, (40.0, 20.0), strict=True):
        row |= {**kind, "mode": "train", "epoch_seconds": seconds}
    figure, text = drawn(tmp_path, rows, epochs=epoch_rows(steps=100))
    assert marks(figure) == [(pytest.approx(2.5), pytest.approx(100 / 60))]
    assert "50.0 s of precompute pays after 250 steps (2.5 epochs)" in " ".join(text.split())
    assert "~" not in text


def test_a_break_even_that_the_runs_disagree_about_is_no_point(tmp_path):
    rows = [row | {"repeat": n} for n in range(3) for row in pair(fast=(0.2, 0.5, 0.9)[n])]
    figure, text = drawn(tmp_path, rows)
    assert marks(figure) == []
    assert len(figure.axes[0].patches) == 1, "a band between its ends"
    # 781 s over 0.8 and over 0.1 s a step
    assert "pays after ~977 to 7,811 steps" in " ".join(text.split())


def test_any_method_with_a_precompute_takes_part(tmp_path):
    rows = pair()
    rows += pair(method="mine", once=1562.0)[1:]
    rows.append(cell_row("vanilla-kd", step_seconds_median=2.0, epoch_seconds=1562.0))
    rows.append(cell_row("student-only"))
    figure, text = drawn(tmp_path, rows)
    assert [x for x, _ in marks(figure)] == pytest.approx([2, 4])
    told = " ".join(text.split())
    assert "mine: ~26.0 min of precompute pays after ~3,124 steps" in told
    assert "against Teacher-KD" in told
    assert "Student only" not in told


def test_only_cells_that_differ_in_the_method_alone_are_compared(tmp_path):
    teacher, embed = pair()
    others = [
        embed | {"batch_size": 32, "label": "a", "cell_id": "a"},
        embed | {"teacher": "small", "label": "b", "cell_id": "b"},
        embed | {**GPU, "label": "c", "cell_id": "c"},
    ]
    sheet = sheet_of(commit(tmp_path, [teacher, *others[:2]]))
    assert families(sheet.groups) == []
    assert "no cell with a precompute finished beside one" in KIND.plan(sheet)


def test_the_papers_four_bars_have_no_pair(tmp_path):
    assert isinstance(KIND.plan(sheet_of(commit(tmp_path, paper_rows()))), str)


def test_the_axis_holds_all_that_pays_and_else_the_training(tmp_path):
    rows = pair(once=781.0) + pair(method="mine", fast=2.0)[1:]
    (family,) = families(sheet_of(commit(tmp_path, rows)).groups)
    assert choose_axis(family).end == 200
    assert len(family.once) == 2


def test_a_panel_per_student_and_setting_and_long_names_fit(tmp_path):
    rows = [row for size in (32, 64) for row in pair(image_size=size, label=str(size))]
    for row in rows:
        row["label"] = f"{row['method']}/{row['label']}"
        row["cell_id"] = row["label"]
    figure, _ = drawn(tmp_path / "a", rows)
    assert len(figure.axes) == 2
    long = "my-very-own-distillation-with-a-name-that-does-not-end"
    swept, text = drawn(
        tmp_path / "b", sweep_rows(methods=("teacher-kd", "cached-kd", "embed-kd", long), seeds=1)
    )
    assert len(swept.axes) == 5
    assert "tiny, 16\N{NO-BREAK SPACE}px, α₂\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}0.9" in text
