"""Figures 2 and 3: what is in a line and in its band."""

import math

import pytest

from kdbench.analysis.figures import FIGURES, curves
from kdbench.analysis.figures.curves import mean_curve
from kdbench.analysis.figures.page import draw_page
from kdbench.analysis.figures.style import drawing
from tests.support.analysis_fixtures import (
    cell_row,
    commit_trainings,
    misplaced,
    paper_rows,
    sheet_of,
    sweep_rows,
    trained_rows,
    written_texts,
)

KIND = FIGURES["curves"]


def said(figure):
    return " ".join(text for text, _ in written_texts(figure))


def lines_of(figure, panel):
    """Points of each line in a panel, by its place on the page."""
    return [list(zip(*line.get_data(), strict=True)) for line in figure.axes[panel].get_lines()]


def test_a_curve_is_the_mean_over_seeds_and_its_band_their_range():
    runs = [(0, {0: 1.0, 1: 2.0}), (1, {0: 3.0, 1: 6.0}), (2, {0: 5.0, 1: 7.0})]
    curve = mean_curve(runs)
    assert curve.epochs == (1, 2)
    assert (curve.mean, curve.low, curve.high) == ((3.0, 5.0), (1.0, 2.0), (5.0, 7.0))
    assert (curve.seeds, curve.interval) == (3, False)


def test_from_five_seeds_on_the_band_is_the_interval_of_the_mean():
    curve = mean_curve([(seed, {0: float(seed)}) for seed in range(5)])
    # t(0.975, 4) = 2.7764, standard deviation sqrt(2.5)
    half = 2.7764451 * math.sqrt(2.5) / math.sqrt(5)
    assert curve.interval
    assert curve.low == pytest.approx((2 - half,))
    assert curve.high == pytest.approx((2 + half,))


def test_repeats_of_one_seed_are_one_training():
    curve = mean_curve([(0, {0: 1.0}), (0, {0: 3.0}), (1, {0: 8.0})])
    assert (curve.mean, curve.low, curve.high, curve.seeds) == ((5.0,), (2.0,), (8.0,), 2)


def test_epochs_that_a_seed_lacks_are_not_in_the_mean():
    assert mean_curve([(0, {0: 1.0, 1: 2.0}), (1, {0: 3.0})]).epochs == (1,)
    assert mean_curve([(0, {0: 1.0}), (1, {1: 3.0})]) is None
    assert mean_curve([]) is None
    assert mean_curve([(0, {0: 4.0})]).low == ()


def test_a_training_that_stopped_is_drawn_apart_and_told(tmp_path):
    rows = [
        cell_row(mode="train", accuracy=0.8, seed=seed, epochs=6, dataset="digits")
        for seed in (0, 1)
    ]
    lost = {"status": "diverged", "error": "the loss is not finite", "accuracy": None}
    rows.append(cell_row(mode="train", seed=2, epochs=6, dataset="digits", **lost))
    with drawing():
        figure = draw_page(KIND.plan(sheet_of(commit_trainings(tmp_path, rows))))
        text = said(figure)
    stopped, cross, mean = lines_of(figure, 3)
    assert mean[-1] == (6, pytest.approx(100 * 0.8 * (1 - 0.5**6)))
    assert stopped[-1] == cross[0] == (6, pytest.approx(100 * 0.5 * (1 - 0.5**6)))
    assert "Lines: mean over seeds (2 per line). Bands: from the lowest" in text
    assert "Thin lines that end in a cross: trainings that stopped early" in text
    assert "diverged: teacher-kd/base/32px" in text


def test_what_is_missing_or_not_finite_has_no_point(tmp_path):
    root = commit_trainings(tmp_path, [cell_row(mode="train", accuracy=0.8)])
    sheet = sheet_of(root)
    epochs = sheet.results.epochs
    epochs.loc[2, "train_loss"] = None
    epochs.loc[3, "train_loss"] = math.inf
    with drawing():
        figure = draw_page(KIND.plan(sheet))
    ((*points,),) = lines_of(figure, 0)
    assert [epoch for epoch, _ in points] == [1, 2, 5, 6]
    assert all(loss > 0.2 for _, loss in points)


@pytest.mark.parametrize(
    ("seeds", "told"),
    [
        (1, "Lines: one training each, of one seed."),
        (3, "Lines: mean over seeds (3 per line). Bands: from the lowest to the highest seed."),
        (6, "Lines: mean over seeds (6 per line). Bands: 95 % interval of that mean."),
    ],
)
def test_the_caption_says_what_the_bands_are(tmp_path, seeds, told):
    sheet = sheet_of(commit_trainings(tmp_path, trained_rows(seeds=seeds)))
    with drawing():
        assert told in said(draw_page(KIND.plan(sheet)))


def test_few_and_many_seeds_on_one_page_are_told_apart(tmp_path):
    rows = [
        *trained_rows(seeds=6),
        *sweep_rows(methods=("embed-kd",), seeds=3, matrix="quickstart"),
    ]
    with drawing():
        text = said(draw_page(KIND.plan(sheet_of(commit_trainings(tmp_path, rows)))))
    assert "(3 to 6 per line)" in text
    assert "Bands (from 5 seeds on): 95 % interval" in text
    assert "Bands (under 5): from the lowest" in text


def test_settings_in_which_methods_differ_are_in_the_legend(tmp_path):
    rows = [
        cell_row(mode="train", accuracy=0.5, precision="bf16"),
        cell_row("embed-kd", mode="train", accuracy=0.6),
        cell_row("student-only", mode="train", accuracy=0.6, alpha1=1.0, alpha2=0.0),
    ]
    with drawing():
        figure = draw_page(KIND.plan(sheet_of(commit_trainings(tmp_path, rows))))
    texts = {text for text, _ in written_texts(figure)}
    # Having no teacher is no such setting.
    assert {
        "Teacher-KD, precision=bf16",
        "Embed-KD, precision=fp32",
        "Student only, precision=fp32",
    } <= texts


def test_profiles_have_no_curves(tmp_path):
    sheet = sheet_of(commit_trainings(tmp_path, paper_rows(), epochs=0))
    assert KIND.plan(sheet) == "no epoch of a training is stored"


def test_more_lines_than_can_be_told_apart_are_refused(tmp_path):
    rows = sweep_rows(seeds=1, alphas=tuple(n / 10 for n in range(1, 10)))
    assert "19 lines are more than" in KIND.plan(sheet_of(commit_trainings(tmp_path, rows)))


def eight_lines():
    long = "a-really-long-teacher-name-that-never-seems-to-end"
    for method in ("teacher-kd", "vanilla-kd", "cached-kd", "embed-kd", "a-plug-ins-own-method"):
        for teacher in ("small", long) if method != "vanilla-kd" else ("small",):
            yield cell_row(method, "tiny", 16, teacher, mode="train", accuracy=0.9)


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        (trained_rows(seeds=3)[:2], 2),
        (sweep_rows(methods=("embed-kd",), alphas=(0.1, 0.3, 0.5, 0.7), seeds=5), 5),
        (list(eight_lines()), 9),
        (
            [
                cell_row(method, student, size, mode="train", accuracy=0.4)
                for method in ("teacher-kd", "embed-kd")
                for student in ("base", "large")
                for size in (32, 64)
            ],
            2,
        ),
    ],
)
def test_texts_are_whole_and_apart_and_lines_tell_themselves_apart(tmp_path, rows, lines):
    with drawing():
        figure = draw_page(KIND.plan(sheet_of(commit_trainings(tmp_path, rows, epochs=30))))
        assert misplaced(figure) == []
    drawn = figure.axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == len(drawn) == lines


def curve_of(*values):
    return mean_curve([(0, dict(enumerate(values)))])


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((1.0, 2.0, 3.0), (1.0, 2.0, 3.0), True),
        ((1.0, 2.0, 3.0), (1.0, 2.01, 3.0), True),
        ((1.0, 2.0, 3.0), (1.0, 2.1, 3.0), False),
        ((1.0, 2.0, 3.0), (1.0, 2.0), False),
        ((2.0,), (2.0,), True),
    ],
)
def test_lines_that_hide_each_other(one, other, expected):
    assert curves.coincide(curve_of(*one), curve_of(*other)) is expected


@pytest.mark.parametrize("alike", [True, False])
def test_a_line_upon_another_is_in_dashes(tmp_path, alike):
    rows = [row for row in trained_rows(seeds=1) if row["method"] != "student-only"]
    for row in rows:
        row["accuracy"] = 0.9 if alike or row["method"] == "embed-kd" else 0.5
    with drawing():
        figure = draw_page(curves.plan(sheet_of(commit_trainings(tmp_path, rows))))
    first, second = figure.axes[3].get_lines()  # test accuracy
    assert first.get_linestyle() == "-"
    assert second.get_linestyle() == ("--" if alike else "-")
    assert "the two coincide" in said(figure)  # the losses are the same in both cases
