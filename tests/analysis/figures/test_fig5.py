"""Figure 5: accuracy against alpha2."""

import pytest

from kdbench.analysis.figures import FIGURES
from kdbench.analysis.figures.page import draw_page
from kdbench.analysis.figures.style import drawing
from tests.support.analysis_fixtures import (
    cell_row,
    commit,
    misplaced,
    no_numbers,
    paper_rows,
    sheet_of,
    sweep_rows,
    trained_rows,
    written_texts,
)

KIND = FIGURES["fig5"]


def drawn(root, rows):
    with drawing():
        figure = draw_page(KIND.plan(sheet_of(commit(root, rows))))
        assert misplaced(figure) == []
        return figure, " ".join(text for text, _ in written_texts(figure))


def test_a_line_per_method_goes_through_the_means(tmp_path):
    figure, text = drawn(tmp_path, sweep_rows(seeds=3))
    (axes,) = figure.axes
    lines = [line for line in axes.get_lines() if len(line.get_xdata()) == 5]
    assert len(lines) == 2
    # 0.9 + 0.05 a - 0.05 a^2 and the mean of 0, 0.003 and 0.006
    means = [100 * (0.903 + 0.05 * a - 0.05 * a * a) for a in (0.1, 0.3, 0.5, 0.7, 0.9)]
    assert list(lines[0].get_ydata()) == pytest.approx(means)
    assert list(lines[0].get_xdata()) == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=0.01)
    assert "mean over seeds (3 per point); small dots: single seeds." in text
    assert "whiskers" not in text


def test_single_seeds_are_drawn_under_five_and_intervals_from_then_on(tmp_path):
    few, _ = drawn(tmp_path / "few", sweep_rows(seeds=4))
    many, text = drawn(tmp_path / "many", sweep_rows(seeds=5))
    dots = [line for line in few.axes[0].get_lines() if len(line.get_xdata()) == 4]
    assert len(dots) == 10
    assert [len(figure.axes[0].collections) for figure in (few, many)] == [0, 10]
    assert not [line for line in many.axes[0].get_lines() if line.get_linestyle() == "None"]
    assert "mean over seeds (5 per point); whiskers: 95 % interval of that mean." in text


def test_the_student_alone_is_a_level(tmp_path):
    figure, text = drawn(tmp_path, sweep_rows(seeds=1))
    (level,) = [line for line in figure.axes[0].get_lines() if list(line.get_xdata()) == [0, 1]]
    assert list(level.get_ydata()) == pytest.approx([88.0, 88.0])
    assert "Horizontal lines: methods without a teacher" in text
    assert "one seed each" in text


def test_the_caption_says_whether_it_is_the_papers_sweep(tmp_path):
    _, ours = drawn(tmp_path / "a", sweep_rows(seeds=1))
    assert "α₁ = 1 − α₂ in every cell drawn" in ours
    _, other = drawn(tmp_path / "b", sweep_rows(seeds=1, alpha1=1.0, loss="published-code"))
    assert "α₁ is not 1 − α₂ in 10 of 10 cells (there it is 1)" in other
    assert "in every cell" not in other


def test_what_did_not_finish_has_no_point(tmp_path):
    rows = sweep_rows(methods=("embed-kd",), seeds=1)
    rows[2] |= {**no_numbers("diverged", "the loss is not finite"), "accuracy": None}
    figure, _ = drawn(tmp_path, rows)
    line = max(figure.axes[0].get_lines(), key=lambda line: len(line.get_xdata()))
    assert list(line.get_xdata()) == [0.1, 0.3, 0.7, 0.9]


@pytest.mark.parametrize(
    "rows",
    [
        paper_rows(),  # profiles
        trained_rows(),  # one alpha2 per method
        # two values, of which one finished
        [
            *sweep_rows(methods=("embed-kd",), alphas=(0.5,), seeds=1),
            cell_row("embed-kd", "tiny", 16, "small", matrix="fig5", mode="train", alpha2=0.9),
        ],
    ],
)
def test_without_a_sweep_there_is_no_figure(tmp_path, rows):
    sheet = sheet_of(commit(tmp_path, rows))
    assert KIND.plan(sheet) == "no method was trained with two values of alpha2"


def test_students_get_a_panel_each_and_eight_lines_are_legible(tmp_path):
    methods = ("teacher-kd", "vanilla-kd", "cached-kd", "embed-kd", "my-very-own-distillation")
    rows = sweep_rows(methods=methods, seeds=2)
    rows += [
        row
        | {"student": "other", "label": row["label"] + "/other", "cell_id": row["cell_id"] + "o"}
        for row in rows
    ]
    figure, _ = drawn(tmp_path, rows)
    assert len(figure.axes) == 2
