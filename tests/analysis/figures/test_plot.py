"""The figures: read back from their SVG, which keeps every text as a comment."""

import os
import re
import subprocess
import sys
import warnings

import pytest

from kdbench.analysis.figures import FIGURES
from kdbench.analysis.figures.page import draw_page
from kdbench.analysis.figures.style import OTHER_COLOUR, drawing, method_colours, new_figure
from kdbench.analysis.metrics import METRICS, find_metrics
from kdbench.analysis.plot import plot, resolution
from kdbench.analysis.results import load_results
from kdbench.cli import main
from kdbench.common.errors import InputError
from tests.support.analysis_fixtures import (
    GPU,
    cell_row,
    commit,
    commit_trainings,
    misplaced,
    no_numbers,
    paper_rows,
    sheet_of,
    sweep_rows,
    trained_rows,
    written_texts,
)


def texts(path):
    return [t.strip() for t in re.findall(r"<!-- (.*?) -->", path.read_text())]


def drawn(results, out, **options):
    (path,) = plot(results, figure="fig4", formats=("svg",), out=out, **options)
    return texts(path)


def measured(shown):
    return [t for t in shown if re.search(r"  (ref|[×÷][\d.]+)$", t)]


def hatched(shown):
    return [t for t in shown if t.startswith("paper ")]


def test_figure_4_as_the_paper_has_it(tmp_path):
    shown = drawn(load_results(commit(tmp_path, paper_rows())), tmp_path)
    assert {"Parameter bytes", "Peak allocated in a step"} <= set(shown)
    assert {"1.25 GB  ref", "129 MB  ÷9.7", "2.68 GB  ×1.29", "~2.82 h  ref"} <= set(shown)
    # Beside each cell in both panels of memory, and the times relative to each machine's own.
    assert len(hatched(shown)) == 12
    assert {"paper 131 MB ÷9.4", "paper 54.0 s ÷11", "Time per epoch, relative"} <= set(shown)
    assert "hatched: the paper's parameter bytes" in shown
    assert "Test accuracy" not in shown
    caption = " ".join(shown)
    for told in (
        "Intel Xeon Platinum 8481C, 2 threads, torch 2.11.0+cpu",
        "2026-01-02, kdbench aa1203a0f00d",
        "1 run per cell",
        "* shape inferred",
        "~ extrapolated",
        "source: ledger",
    ):
        assert told in caption


def test_a_training_of_something_else_gets_no_bars_of_the_paper(tmp_path):
    shown = drawn(load_results(commit(tmp_path, trained_rows())), tmp_path)
    assert {"Test accuracy", "94.9 %  ref", "95.9 %  ×1.01", "Time per epoch"} <= set(shown)
    assert not hatched(shown)
    assert "Hatched" not in " ".join(shown)


@pytest.mark.parametrize(("dataset", "count"), [("cifar100", 4), ("cifar10", 0)])
def test_the_papers_accuracy_belongs_to_its_data_set(tmp_path, dataset, count):
    rows = paper_rows(mode="train", dataset=dataset, accuracy=0.5)
    shown = drawn(load_results(commit(tmp_path, rows)), tmp_path, metrics=["accuracy"])
    assert len([t for t in hatched(shown) if "%" in t]) == count


def test_times_stay_absolute_without_a_common_reference(tmp_path):
    other = cell_row("embed-kd", "base", 32)  # which the paper lacks
    results = load_results(commit(tmp_path, [*paper_rows(), other]))
    shown = drawn(results, tmp_path, metrics=["epoch_time"], reference=other["label"])
    assert "Time per epoch" in shown
    assert not hatched(shown)


def test_a_cell_without_a_number_has_no_bar(tmp_path):
    rows = [*paper_rows(), cell_row("teacher-kd", "large", 64, **no_numbers("oom", "too large"))]
    shown = drawn(load_results(commit(tmp_path, rows)), tmp_path)
    assert shown.count("oom") == 3
    assert len(measured(shown)) == 12
    assert any("oom: teacher-kd/large/64px" in t and "too large" in t for t in shown)
    assert not any(re.match(r"0(\.0+)? ", t) for t in shown)


def test_chosen_metrics_replace_the_default(tmp_path):
    rows = paper_rows(**GPU, reserved_peak_bytes=3_000_000_000)
    shown = drawn(load_results(commit(tmp_path, rows)), tmp_path, metrics=["reserved", "host"])
    assert {"Peak reserved in a step", "Peak host memory"} <= set(shown)
    assert "Parameter bytes" not in shown
    # The paper's figure beside the card's memory, not beside the host's.
    assert len([t for t in hatched(shown) if "B" in t]) == 4


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"figure": "fig44"}, "--figure: unknown figure 'fig44'; did you mean 'fig4'"),
        ({"metrics": ["alocated"]}, "did you mean 'allocated'?"),
        ({"formats": ("jpg",)}, "--format: unknown format 'jpg'"),
        ({"formats": ()}, "at least one format"),
        ({"reference": "nobody"}, "no cell has the label 'nobody'"),
        ({"metrics": ["reserved"]}, "no reserved, which is null when not on a CUDA device"),
        ({"figure": "fig4", "metrics": ["energy"]}, "--figure: these results give no figure"),
        ({"figure": "fig3"}, "fig3: no epoch of a training is stored"),
        ({"figure": "fig5"}, "fig5: no method was trained with two values of alpha2"),
        ({"figure": "breakeven"}, "breakeven: no cell with a precompute finished beside one"),
        ({"figure": "pareto"}, "pareto: fewer than two cells were trained"),
        ({"figure": "curves", "metrics": ["host"]}, "--metric: the figure 'curves' shows no metr"),
    ],
)
def test_what_cannot_be_drawn_is_an_error_and_writes_nothing(tmp_path, options, told):
    results = load_results(commit(tmp_path / "store", paper_rows()))
    with pytest.raises(InputError) as error:
        plot(results, out=tmp_path / "figures", **options)
    assert told in str(error.value)
    assert not (tmp_path / "figures").exists()


def test_nothing_finished_nothing_drawn(tmp_path):
    results = load_results(commit(tmp_path, [cell_row(**no_numbers("failed", "why"))]))
    with pytest.raises(InputError, match="no run finished"):
        plot(results)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    results = load_results(commit(tmp_path / "store", trained_rows()))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the figure"):
        plot(results, figure="fig4", out=tmp_path / "file" / "figures")


def test_every_format_is_written_whole_beside_the_results(tmp_path):
    results = load_results(commit(tmp_path, trained_rows()))
    paths = plot(results, figure="fig4", formats=("png", "svg", "pdf", "png"))
    assert paths == [tmp_path / "figures" / f"fig4.{form}" for form in ("png", "svg", "pdf")]
    starts = [path.read_bytes()[:5] for path in paths]
    assert starts == [b"\x89PNG\r", b"<?xml", b"%PDF-"]
    assert sorted((tmp_path / "figures").iterdir()) == sorted(paths)


@pytest.mark.parametrize("form", ["svg", "pdf", "png"])
def test_the_same_results_give_the_same_bytes(tmp_path, form):
    results = load_results(commit(tmp_path / "store", paper_rows()))
    files = [plot(results, formats=(form,), out=tmp_path / name)[0] for name in ("a", "b")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_environments_and_matrices_are_never_in_one_figure(tmp_path):
    commit(tmp_path / "fig4", [*paper_rows(), *paper_rows(**GPU)])
    commit(tmp_path / "quickstart", trained_rows())
    results = load_results(tmp_path)
    ids = [environment.id for environment in results.environments()]
    beside = plot(results, figure="fig4", formats=("svg",))
    assert [path.relative_to(tmp_path).as_posix() for path in beside] == [
        f"fig4/figures/fig4-fig4-{ids[0]}.svg",
        f"fig4/figures/fig4-fig4-{ids[1]}.svg",
        "quickstart/figures/fig4.svg",
    ]
    assert "H200" not in " ".join(texts(beside[0]))
    assert "Xeon" not in " ".join(texts(beside[1]))
    assert len(measured(texts(beside[0]))) == 12
    together = plot(results, figure="fig4", formats=("svg",), out=tmp_path / "out")
    assert len(set(together)) == 3
    assert together[2].name == f"fig4-quickstart-{ids[0]}.svg"


def test_whiskers_are_explained_where_they_are(tmp_path):
    few = drawn(load_results(commit(tmp_path / "few", trained_rows(seeds=3))), tmp_path / "a")
    many = drawn(load_results(commit(tmp_path / "many", trained_rows(seeds=6))), tmp_path / "b")
    assert "whiskers" not in " ".join(few)
    assert "whiskers: 95 % interval over them" in " ".join(many)


def long_rows():
    for index, batch_size in enumerate((64, 128, 256)):
        for method in ("teacher-kd", "embed-kd", "student-only"):
            student = "a-really-long-student-name-that-never-seems-to-end"
            label = f"{method}/{student}/32px/vit-large-patch32/batch_size={batch_size}"
            yield cell_row(method, student, label=label, batch_size=batch_size, cell_id=str(index))


@pytest.mark.parametrize(
    ("rows", "metrics"),
    [
        (paper_rows(), None),
        (paper_rows(), ["allocated", "epoch_time"]),
        ([*paper_rows(), cell_row("student-only")], ["parameters"]),
        (paper_rows(**GPU, mode="train", dataset="cifar100", accuracy=0.5), None),
        (trained_rows(seeds=7), None),
        (list(long_rows()), None),
    ],
)
def test_every_text_lies_inside_the_canvas_and_on_no_other(tmp_path, rows, metrics):
    sheet = sheet_of(commit(tmp_path, rows), tuple(find_metrics(metrics or ())))
    with drawing():
        figure = draw_page(FIGURES["fig4"].plan(sheet))
        assert misplaced(figure) == []
        assert len(written_texts(figure)) > 15


def test_without_a_name_every_figure_that_the_results_allow_is_drawn(tmp_path):
    profiled = load_results(commit(tmp_path / "a", paper_rows()))
    trained = load_results(commit_trainings(tmp_path / "b", sweep_rows(seeds=1)))
    assert [path.name for path in plot(profiled)] == ["fig4.png"]
    names = ["curves.png", "fig4.png", "fig5.png", "breakeven.png", "pareto.png"]
    assert [path.name for path in plot(trained)] == names
    # A chosen metric is for the figures that can show it.
    assert [path.name for path in plot(trained, metrics=["host"])] == ["fig4.png"]


@pytest.mark.parametrize("name", ["fig2", "fig3", "curves"])
def test_figures_2_and_3_are_the_curves_under_the_name_asked_for(tmp_path, name):
    results = load_results(commit_trainings(tmp_path, trained_rows(seeds=1)))
    (path,) = plot(results, figure=name, formats=("svg",))
    assert path.name == f"{name}.svg"
    assert "Training and validation curves: quickstart" in texts(path)


def test_a_plug_ins_method_has_a_colour_of_its_own():
    colours = method_colours(["teacher-kd", "mine", "embed-kd", "cached-kd", "yours"])
    assert len(set(colours.values())) == 5
    assert colours == method_colours(["teacher-kd", "mine", "embed-kd", "cached-kd", "yours"])
    assert list(colours) == ["teacher-kd", "mine", "embed-kd", "cached-kd", "yours"]
    many = method_colours([f"method-{n}" for n in range(9)])
    assert many["method-8"] == OTHER_COLOUR


def test_the_help_names_every_figure(capsys):
    assert main(["plot", "--help"]) == 0
    told = set(re.findall(r"\w+", capsys.readouterr().out))
    assert {name for kind in FIGURES.values() for name in (kind.name, *kind.aliases)} <= told
    assert set(METRICS) <= told


def test_several_figures_are_drawn_or_none(tmp_path, capsys):
    root = commit(tmp_path / "a", paper_rows())
    out = ["--out", str(tmp_path / "drawn")]
    both = ["--figure", "memory", "--figure", "fig4"]
    assert main(["plot", str(root), *both, *out]) == 2
    told = capsys.readouterr().err
    assert "memory: " in told
    assert "fig4" not in told
    assert not (tmp_path / "drawn").exists()
    root = commit_trainings(tmp_path / "b", sweep_rows(seeds=1))
    assert main(["plot", str(root), "--figure", "fig5", "--figure", "fig4", *out]) == 0
    assert {path.name for path in (tmp_path / "drawn").iterdir()} == {"fig5.png", "fig4.png"}


def test_every_run_is_a_dot_and_what_has_no_ratio_is_pale(tmp_path):
    rows = [cell_row(repeat=n, step_seconds_fastest=1.0 + 0.01 * n) for n in range(3)]
    rows += [
        cell_row("embed-kd", repeat=n, step_seconds_fastest=value, contended=n == 3, contention="x")
        for n, value in enumerate((0.84, 7.75, 11.45, 20.0))
    ]
    sheet = sheet_of(commit(tmp_path, rows), find_metrics(["fastest_step"]))
    with drawing():
        figure = draw_page(FIGURES["fig4"].plan(sheet))
        assert misplaced(figure) == []
        shown = [text for text, _ in written_texts(figure)]
    panel = figure.axes[0]
    dots = [sorted(float(x) for x in line.get_xdata()) for line in panel.get_lines()]
    assert [1.0, 1.01, 1.02] in dots
    assert [0.84, 7.75, 11.45] in dots
    assert [20.0] in dots, "left out, and still shown"
    sure, unsure = (bar.get_facecolor() for bar in panel.patches)
    assert sum(unsure[:3]) > sum(sure[:3])
    assert "1.01 s  ref" in shown
    assert "7.75 s?" in shown
    caption = " ".join(shown)
    assert "dots: each run" in caption
    assert "hollow: a contended one, left out" in caption
    assert "? no ratio is drawn" in caption


def test_profiled_and_trained_cells_have_a_figure_each(tmp_path):
    rows = [*paper_rows(), *paper_rows(mode="train")]
    results = load_results(commit(tmp_path, rows))
    written = plot(results, figure="fig4", formats=("svg",), out=tmp_path / "out")
    (environment,) = results.environments()
    assert [path.name for path in written] == [
        f"fig4-fig4-{environment.id}-{mode}.svg" for mode in ("profiled", "trained")
    ]
    for path, told in zip(written, ("Profiled 2026-01-02", "Trained 2026-01-02"), strict=True):
        assert told in " ".join(texts(path))
        assert len([text for text in texts(path) if text.endswith("ref")]) == 3


PARTS = {
    **{f"step_{part}_seconds": 0.1 for part in ("data", "teacher", "forward", "backward")},
    "step_optimizer_seconds": 0.05,
    "step_seconds_fastest": 0.3,
    "flops_step": 4e8,
    "matmul_flops_per_second": 1e12,
    "rates_steady": True,
    "rates_contended": False,
    "accuracy": 1.0,
    "reserved_peak_bytes": 3 * 10**9,
    "process_peak_bytes": 4 * 10**9,
    "device_peak_bytes": 5 * 10**9,
    "energy_step_joules": 100.0,
    "energy_epoch_joules": 7e4,
    "energy_training_joules": 1e7,
    "precompute_joules": 1e4,
    "host_energy_step_joules": 20.0,
}
# Letters that mean something to mathematics, that no bundled font has, and that are long.
WEIRD = ("a$b_c%d^2$", "学生🙂", "a-really-long-student-name-that-never-seems-to-end")


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13, len(METRICS)])
def test_any_number_of_metrics_fits(tmp_path, count):
    """Titles, notes and numbers lie inside the figure, each on none of the others."""
    rows = [cell_row("embed-kd", name, **PARTS) for name in WEIRD]
    # those with the longest titles first
    names = sorted(METRICS, key=lambda name: -len(METRICS[name].title))[:count]
    sheet = sheet_of(commit(tmp_path, rows), tuple(find_metrics(names)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as of a letter that no font has
        with drawing():
            figure = draw_page(FIGURES["fig4"].plan(sheet))
            assert misplaced(figure) == []
    assert len(figure.axes) >= count


def test_a_figure_of_very_many_rows_is_still_a_picture(tmp_path):
    """200 cells and all metrics are 700 inches high, and a picture has 65,536 rows."""
    assert resolution(new_figure(10, 20)) == 200
    tall = new_figure(1, 700)
    tall.savefig(tmp_path / "tall.png", dpi=resolution(tall))
    assert (tmp_path / "tall.png").stat().st_size > 0


@pytest.mark.parametrize("name", ["curves", "fig5", "pareto"])
def test_no_accuracy_axis_goes_beyond_100_percent(tmp_path, name):
    rows = [
        row | {"accuracy": 1.0 if row["seed"] else 0.98}
        for row in sweep_rows(seeds=2, alphas=(0.1, 0.9))
    ]
    sheet = sheet_of(commit_trainings(tmp_path, rows))
    with drawing():
        figure = draw_page(FIGURES[name].plan(sheet))
        axes = [one for one in figure.axes if "accuracy, %" in one.get_ylabel()]
        assert axes
        assert all(0 <= one.get_ylim()[0] < one.get_ylim()[1] <= 100 for one in axes)
        assert misplaced(figure) == []


def test_what_is_predicted_is_called_so_in_the_title(tmp_path):
    rows = paper_rows(source="predicted", profile="h100")
    shown = drawn(load_results(commit(tmp_path / "a", rows)), tmp_path / "a")
    assert "What a distillation costs: fig4 (predicted, not measured)" in shown
    told = " ".join(shown)
    assert "Predicted 2026-01-02" in told
    assert "Profiled" not in told
    assert "one prediction per cell" in told
    shown = drawn(load_results(commit(tmp_path / "b", paper_rows())), tmp_path / "b")
    assert "What a distillation costs: fig4" in shown


SETTINGS = {
    "no such backend": ({"MPLBACKEND": "nonsense"}, b""),
    "settings that cannot be read": ({}, b"\xff\xfe: 1"),
    "settings that change all": ({}, b"text.usetex: True\nfont.size: 50\nsavefig.dpi: 3\n"),
}


def test_figures_need_nothing_of_the_users_settings(tmp_path):
    """The same bytes, whatever matplotlib is told by the environment and the current folder."""
    commit(tmp_path / "results", [cell_row()])
    written = {}
    for name, (environment, rc) in {"none": ({}, b""), **SETTINGS}.items():
        (tmp_path / "matplotlibrc").write_bytes(rc)
        out = [*("--out", name), "--figure", "fig4", "--format", "svg"]
        done = subprocess.run(
            [sys.executable, "-m", "kdbench", "plot", "results", *out],
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        assert done.returncode == 0, (name, done.stderr)
        assert "Traceback" not in done.stderr
        written[name] = (tmp_path / name / "fig4.svg").read_bytes()
    assert set(written.values()) == {written["none"]}
