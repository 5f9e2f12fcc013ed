"""A method of somebody else's: the example of the documentation, installed and run."""

import importlib.metadata
import os
import re
import subprocess
import sys

import pandas as pd
import pytest

from kdbench.common.errors import InputError
from kdbench.spec import method as registry
from kdbench.spec.method import Method, find_method
from tests.support import REPOSITORY
from tests.support.trainings import attempt, cell_of, result_of, training_run
from tests.worker.training.test_train import digits_text

# what it needs is there already
OPTIONS = ("--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
EXAMPLES = [REPOSITORY / "docs/examples/similarity-kd", REPOSITORY / "docs/examples/feature-kd"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Install the examples as a user would, into a folder of their own."""
    folder = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source")
    subprocess.run(["cp", "-r", *EXAMPLES, source], check=True)  # building leaves files behind
    copies = [str(source / example.name) for example in EXAMPLES]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *OPTIONS, "--target", str(folder), *copies],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def command(site):
    """Run a command line in a process that finds the installed package."""

    def call(*arguments):
        path = os.pathsep.join([str(REPOSITORY), str(site)])
        return subprocess.run(
            [sys.executable, "-m", "kdbench", *map(str, arguments)],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path},
            check=False,
        )

    return call


AXIS = 'axes.method=["teacher-kd", "similarity-kd"]'


def test_an_installed_method_runs_as_kdbenchs_own(command, site, tiny, tmp_path):
    shown = command("cells", "--matrix", tiny, "--set", AXIS)
    assert shown.returncode == 0, shown.stderr
    assert "similarity-kd/small/8px/dwarf" in shown.stdout

    arguments = ("run", "--matrix", tiny, "--device", "cpu", "--set", AXIS)
    done = command(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = pd.read_parquet(tmp_path / "results/tiny/cells").set_index("method")
    cell = cells.loc["similarity-kd"]
    assert cell["status"] == "ok"
    assert cell["precompute_kept_bytes"] == 64 * 2 * 24 * 4
    assert cell["parameter_bytes"] < cells.loc["teacher-kd", "parameter_bytes"]
    assert "2 cells are there already" in command(*arguments).stdout

    # Its code is part of what a cell is.
    step = site / "similarity_kd/step.py"
    step.write_text(step.read_text().replace("mse_loss", "l1_loss"))
    changed = command(*arguments, "--only", "method=similarity-kd")
    assert changed.returncode == 0, changed.stderr
    assert "already" not in changed.stdout
    ids = pd.read_parquet(tmp_path / "results/tiny/cells").groupby("method")["cell_id"].nunique()
    assert ids.to_dict() == {"similarity-kd": 2, "teacher-kd": 1}

    step.unlink()
    broken = command(*arguments, "--only", "method=similarity-kd")
    assert broken.returncode == 1
    cells = pd.read_parquet(tmp_path / "results/tiny/cells")
    (error,) = cells[cells["status"] == "failed"]["error"]
    assert "cannot find the method's step 'similarity_kd.step:similarity_kd'" in error


SIZES = ("parameter_bytes", "student_parameters", "method_parameters")


def kept(tables, method):
    """Bytes of a method's cell at its steady peak, by category and module."""
    memory = tables["memory"].fillna({"module": ""})
    own = memory["run_key"] == tables["cells"].set_index("method").loc[method, "run_key"]
    rows = memory[own & (memory["stage"] == "steady")]
    return rows.groupby(["category", "module"])["bytes"].sum().to_dict()


WITH_CONTROL = 'axes.method=["student-only", "feature-kd"]'


def test_a_layer_of_its_own_is_shown_apart_and_predicted(command, site, tiny, tmp_path):
    arguments = ("--matrix", tiny, "--set", WITH_CONTROL)
    done = command("run", *arguments, "--device", "cpu")
    assert done.returncode == 0, done.stdout + done.stderr
    predicted = command("predict", *arguments, "--out", tmp_path / "predicted")
    assert predicted.returncode == 0, predicted.stderr
    measured, foreseen = (
        {name: pd.read_parquet(tmp_path / root / "tiny" / name) for name in ("cells", "memory")}
        for root in ("results", "predicted")
    )
    cells, traced = (
        found["cells"].set_index("method").sort_index() for found in (measured, foreseen)
    )
    for name in ("allocated_peak_bytes", *SIZES, "flops_step", "bytes_moved_step"):
        assert (cells[name].fillna(0) == traced[name].fillna(0)).all(), name
    own, student = 16 * 24 + 24, cells.loc["student-only", "student_parameters"]
    assert (cells["student_parameters"] == student).all(), "no projection lies there unused"
    assert cells.loc["feature-kd", "method_parameters"] == own
    assert pd.isna(cells.loc["student-only", "method_parameters"])
    assert cells.loc["feature-kd", "parameter_bytes"] == 4 * (student + own)
    assert kept(measured, "feature-kd") == kept(foreseen, "feature-kd")
    held = kept(measured, "feature-kd")
    assert held["parameters", "method.projector"] == 4 * own
    plain = kept(measured, "student-only")
    state = held["optimizer_state", "optimizer"] - plain["optimizer_state", "optimizer"]
    assert state == 2 * 4 * own + 2 * 4


def test_a_layer_that_is_given_to_nobody_is_not_left_untrained_in_silence(command, site, tiny):
    step = site / "feature_kd/step.py"
    text = step.read_text()
    layer = "nn.Linear(parts.student.width, parts.teacher_width)"
    step.write_text(text.replace(f'parts.own("projector", {layer})', f"{layer}.to(parts.device)"))
    arguments = ("--matrix", tiny, "--set", 'axes.method="feature-kd"')
    refused = [command("run", *arguments, "--device", "cpu"), command("predict", *arguments)]
    step.write_text(text)
    assert [done.returncode for done in refused] == [1, 1]
    for done in refused:
        (line,) = [line for line in done.stdout.splitlines() if "no optimizer trains" in line]
        assert "feature_kd.step:feature_kd: the method's step has parameters" in line
        assert "Traceback" not in done.stdout + done.stderr


def test_a_training_with_a_layer_of_its_own_goes_on_to_the_bit(site, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(site)
    registry._plugged.cache_clear()
    matrix = tmp_path / "tiny.toml"
    matrix.write_text(digits_text())
    settings = ('teachers.dwarf.weights="random"', "budget.checkpoint_seconds=1e-9")
    run = training_run(matrix, "feature-kd", *settings)
    attempt(run, tmp_path / "whole")
    attempt(run, tmp_path / "stopped", stop_after=7)
    attempt(run, tmp_path / "stopped")
    registry._plugged.cache_clear()
    assert cell_of(tmp_path / "stopped")["steps_resumed"] == 7
    weights, *_ = result = result_of(tmp_path / "stopped")
    assert {"method.projector.weight", "optimizer.method.projector.bias.exp_avg"} <= weights[
        "last"
    ].keys()
    assert result == result_of(tmp_path / "whole")


def test_planning_with_an_installed_method_imports_no_torch(site, tiny):
    code = f"""
import sys
from kdbench import load_matrix
load_matrix({str(tiny)!r}, assignments=[{AXIS!r}])
assert "similarity_kd" in sys.modules and "torch" not in sys.modules
"""
    path = os.pathsep.join([str(REPOSITORY), str(site)])
    subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, check=True)


def test_the_documentation_shows_the_examples_as_they_are():
    page = (REPOSITORY / "docs/how-to/add-a-method.md").read_text()
    files = [path for example in EXAMPLES for path in example.rglob("*.*") if path.is_file()]
    lines = {line.strip() for file in files for line in file.read_text().splitlines()}
    shown = re.findall(r"^```(?:python|toml)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(shown) == 5
    for block in shown:
        assert {line.strip() for line in block.splitlines()} <= lines | {""}


def test_all_methods_are_in_the_documentation():
    page = (REPOSITORY / "docs/how-to/add-a-method.md").read_text()
    assert re.findall(r"^\| `([\w-]+)` \|", page, re.MULTILINE) == [
        "teacher-kd",
        "cached-kd",
        "embed-kd",
        "vanilla-kd",
        "student-only",
    ]
    assert len(registry.BUILT_IN) == 5


@pytest.fixture
def declared(monkeypatch):
    """Pretend that a package declares a method."""

    def call(value, name="mine"):
        point = importlib.metadata.EntryPoint(name, value, registry.GROUP)
        monkeypatch.setattr(registry, "entry_points", lambda group: [point])
        registry._plugged.cache_clear()
        registry._loaded.cache_clear()

    yield call
    monkeypatch.undo()
    registry._plugged.cache_clear()


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("no_such_module:METHOD", "cannot load the method: ModuleNotFoundError"),
        ("kdbench.spec.method:NOTHING", "cannot load the method: AttributeError"),
        (
            "kdbench.spec.method:GROUP",
            r"expected a kdbench\.plugin\.Method, found 'kdbench\.methods'",
        ),
    ],
)
def test_a_broken_declaration_is_told_in_one_line(value, told, declared, kdbench, tiny):
    declared(value)
    with pytest.raises(InputError, match=rf"entry point 'mine' of kdbench\.methods .*{told}"):
        find_method("mine")
    said = kdbench("cells", "--matrix", tiny, "--set", 'axes.method="mine"')
    assert said.code == 2
    assert re.search(told, said.err), said.err


def test_kdbenchs_own_methods_cannot_be_replaced(declared):
    declared("kdbench.spec.method:GROUP", name="embed-kd")
    assert find_method("embed-kd") is registry.BUILT_IN["embed-kd"]


def test_an_unknown_method_is_hinted_at(declared):
    declared("kdbench.spec.method:GROUP", name="similarity-kd")
    with pytest.raises(InputError, match="did you mean 'similarity-kd'"):
        find_method("similarty-kd")


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": "no colon", "teacher": "none"},
        {"step": "a:b", "teacher": "sometimes"},
        {"step": "a:b", "teacher": "none", "classifier": True},
    ],
)
def test_what_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ValueError, match="expected"):
        Method(**wrong)
