"""Accuracy against cost: the pareto_front, the costs, and the names at the points."""

import itertools
import random

import pytest

from kdbench.analysis.figures import FIGURES
from kdbench.analysis.figures.labels import Box, place_labels
from kdbench.analysis.figures.page import draw_page
from kdbench.analysis.figures.pareto import training_joules, training_seconds
from kdbench.analysis.figures.scatter import pareto_front
from kdbench.analysis.figures.style import drawing
from tests.support.analysis_fixtures import (
    GPU,
    cell_row,
    commit,
    commit_trainings,
    misplaced,
    paper_rows,
    sheet_of,
    sweep_rows,
    trained_rows,
    written_texts,
)

KIND = FIGURES["pareto"]


def drawn(root, rows):
    with drawing():
        figure = draw_page(KIND.plan(sheet_of(commit_trainings(root, rows))))
        assert misplaced(figure) == []
        return figure, " ".join(text for text, _ in written_texts(figure))


def beaten(point, points):
    return any(other[0] <= point[0] and other[1] >= point[1] and other != point for other in points)


def test_the_front_is_what_no_other_beats():
    assert pareto_front([(1, 5), (2, 4), (2, 6), (3, 6), (0.5, 1)]) == [4, 0, 2]
    assert pareto_front([(1, 5), (1, 5)]) == [0, 1]  # equals do not beat each other
    generator = random.Random(0)
    for _ in range(200):
        points = [
            (generator.randint(0, 6), generator.randint(0, 6))
            for _ in range(generator.randint(1, 9))
        ]
        expected = {i for i, point in enumerate(points) if not beaten(point, points)}
        assert set(pareto_front(points)) == expected, points


def test_the_time_of_a_training_holds_its_precompute(tmp_path):
    root = commit_trainings(tmp_path, trained_rows(seeds=1, epochs=6, energy_step_joules=2.0))
    groups = {group.method: group for group in sheet_of(root).groups}
    assert training_seconds(groups["embed-kd"]) == pytest.approx(6 * 22 * 0.06 + 3.0)
    assert training_seconds(groups["student-only"]) == pytest.approx(6 * 22 * 0.055)
    assert training_joules(groups["embed-kd"]) == pytest.approx(2.0 * 22 * 6)


def test_what_is_not_known_is_not_a_cost(tmp_path):
    root = commit(tmp_path, trained_rows(seeds=1, epoch_seconds=None, energy_step_joules=2.0))
    (group, *_) = sheet_of(root).groups
    assert training_seconds(group) is None
    assert training_joules(group) is None  # nothing tells the steps of an epoch


def test_panels_are_those_whose_cost_is_known(tmp_path):
    figure, text = drawn(tmp_path / "cpu", trained_rows())
    assert len(figure.axes) == 2
    assert "Energy" not in text
    gpu = trained_rows(**GPU, energy_step_joules=3.0, allocated_source="cuda-allocator")
    gpu[0]["energy_step_joules"] = gpu[3]["energy_step_joules"] = gpu[6]["energy_step_joules"] = (
        None
    )
    figure, text = drawn(tmp_path / "gpu", gpu)
    assert len(figure.axes) == 3
    assert "Energy of the training: not known for teacher-kd/tiny/16px/small" in " ".join(
        text.split()
    )
    names = [t.get_text() for t in figure.axes[2].texts]
    assert names == ["Embed-KD", "Student only"]


def test_points_on_the_front_are_filled(tmp_path):
    figure, text = drawn(tmp_path, trained_rows(seeds=6))
    points = [line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 1]
    filled = [line.get_markerfacecolor() != "white" for line in points]
    # Embed-KD is better than both others at the same memory as one and less than the other's.
    assert filled == [False, True, False]
    assert "mean over seeds (6 per point); bars: 95 % interval of that mean" in text


@pytest.mark.parametrize("rows", [paper_rows(), trained_rows(seeds=2)[:1]])
def test_fewer_than_two_trainings_are_no_comparison(tmp_path, rows):
    sheet = sheet_of(commit(tmp_path, rows))
    assert KIND.plan(sheet) == "fewer than two cells were trained"


def test_data_sets_are_not_compared_with_each_other(tmp_path):
    rows = [*trained_rows(), *trained_rows(dataset="cifar10")]
    figure, text = drawn(tmp_path, rows)
    assert len(figure.axes) == 4
    assert "Peak allocated in a step, cifar10" in text


def grid():
    methods = ("teacher-kd", "vanilla-kd", "cached-kd", "embed-kd", "my-own-long-distillation")
    for rank, (method, student, size) in enumerate(
        itertools.product(methods, ("base", "large"), (32, 64))
    ):
        yield cell_row(
            method,
            student,
            size,
            mode="train",
            accuracy=0.4 + 0.013 * rank,
            epoch_seconds=60.0 + 90 * (student == "large") + 40 * (size == 64) - 2 * rank,
            allocated_peak_bytes=10**9 * (1 + 9 * (student == "large") + 4 * (size == 64)),
        )


@pytest.mark.parametrize(
    ("rows", "numbered"),
    [
        (trained_rows(seeds=3), False),
        (list(grid())[:8], False),
        (list(grid()), True),
        (sweep_rows(seeds=2), True),
    ],
)
def test_names_are_apart_and_where_they_cannot_be_there_are_numbers(tmp_path, rows, numbered):
    figure, text = drawn(tmp_path, rows)
    names = [t.get_text() for t in figure.axes[0].texts]
    assert [name.isdecimal() for name in names] == [numbered] * len(names)
    assert len(set(names)) == len(names) == len({row["label"] for row in rows})
    if numbered:
        assert f"{len(names)}  " in text


def test_places_lie_inside_and_apart():
    points = [(0.1, 0.1), (0.2, 0.1), (1.9, 1.4), (1.0, 0.7)]
    taken = [Box(0.0, 0.65, 2.0, 0.75)]
    placed = place_labels(points, [(0.6, 0.15)] * 4, room=(2.0, 1.5), taken=taken)
    boxes = [place.box for place in placed]
    assert all(box.within(2.0, 1.5) for box in boxes)
    for one, other in itertools.combinations([*boxes, *taken], 2):
        assert not one.meets(other)
    assert not any(
        box.left < x < box.right and box.bottom < y < box.top for box in boxes for x, y in points
    )


def test_what_has_no_place_is_not_placed():
    assert place_labels([(0.5, 0.5)], [(1.5, 0.2)], room=(1.0, 1.0)) is None
    assert place_labels([(0.5, 0.5)] * 40, [(0.3, 0.2)] * 40, room=(1.0, 1.0), far=True) is None
