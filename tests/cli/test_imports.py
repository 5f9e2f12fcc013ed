"""What is imported when: torch in the worker alone, and nothing heavy for `--help`."""

import json
import subprocess
import sys

import pytest

from tests.support.analysis_fixtures import commit, paper_rows

HEAVY = (
    "torch",
    "transformers",
    "pandas",
    "pyarrow",
    "matplotlib",
    "seaborn",
    "scipy",
    "datasets",
    "sklearn",
)


def imported_by(*arguments):
    """Top-level packages that a command has loaded when it ends."""
    code = (
        "import sys, json\nfrom kdbench.cli import main\n"
        f"code = main({[str(a) for a in arguments]!r})\n"
        "print(json.dumps([code, sorted({m.split('.')[0] for m in sys.modules})]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["run", "--help"], ["plot", "--help"], ["compare", "--help"], ["--version"]],
)
def test_help_loads_nothing_heavy(arguments):
    code, modules = imported_by(*arguments)
    assert code == 0
    assert not set(HEAVY) & set(modules)


def test_reading_needs_no_torch(finished, tmp_path):
    for arguments in (
        ["show", finished],
        ["plot", finished, "--out", tmp_path / "figures"],
        ["show", finished, "--format", "json"],
    ):
        code, modules = imported_by(*arguments)
        assert code == 0
        assert not {"torch", "transformers", "datasets", "sklearn"} & set(modules), arguments
        if arguments[0] == "show":
            assert "matplotlib" not in modules


def test_comparing_needs_neither_torch_nor_figures(tmp_path):
    for name, seconds in (("a", 1.0), ("b", 2.0)):
        commit(tmp_path / name / "fig4", paper_rows(step_seconds_median=seconds))
    code, modules = imported_by("compare", tmp_path / "a", tmp_path / "b")
    assert code == 0
    assert not {"torch", "transformers", "datasets", "sklearn", "matplotlib"} & set(modules)


def test_planning_and_running_need_no_torch(tiny, tmp_path):
    code, modules = imported_by("cells", "--matrix", tiny)
    assert (code, "torch" in modules) == (0, False)
    code, modules = imported_by(
        "run",
        "--matrix",
        tiny,
        "--device",
        "cpu",
        "--only",
        "method=embed-kd",
        "--out",
        tmp_path / "results",
    )
    assert (code, "torch" in modules) == (0, False)


def test_the_library_is_light_until_it_is_used():
    code = "import sys, json, kdbench\nkdbench.load_matrix\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in json.loads(done.stdout)


def test_the_pytest_plugin_is_light_until_it_is_used():
    """Every test run of whoever has kdbench installed loads it."""
    code = (
        "import sys, json, kdbench.pytest_plugin\n"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {*HEAVY, "numpy", "pydantic", "rich"} & set(json.loads(done.stdout))


def test_a_student_alone_needs_no_transformers(finished):
    """Its import takes seconds, which no cell without a teacher should pay."""
    code = (
        "import sys, json\nimport kdbench.worker.__main__, kdbench.worker.measure\n"
        "print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"transformers", "datasets", "sklearn"} & set(json.loads(done.stdout))
