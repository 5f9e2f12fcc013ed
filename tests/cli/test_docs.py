"""The documentation says what the code does."""

import importlib.util
import re
import tomllib

import pytest

from kdbench.analysis.figures import FIGURES
from kdbench.analysis.metrics import METRICS
from kdbench.cli import app, main
from kdbench.cli.examples import EXAMPLES
from kdbench.matrix.grid import AxisValues
from kdbench.matrix.resolve import MatrixFile
from kdbench.spec.budget import Budget
from kdbench.spec.profiles import known_profiles
from kdbench.spec.settings import Data, Fit, Student, Teacher, Training
from kdbench.store.schema import TABLES
from tests.support import REPOSITORY


@pytest.fixture(scope="module")
def generated():
    """The pages that the site gets from the code."""
    spec = importlib.util.spec_from_file_location("generate", REPOSITORY / "docs/generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.pages()


def test_the_generated_pages_have_every_command_key_column_and_metric(generated):
    commands, keys, columns, metrics, python, *_ = generated.values()
    for command in app.registered_commands:
        assert f"\n## kdbench {command.callback.__name__}\n" in commands
    for model in (MatrixFile, AxisValues, Student, Teacher, Fit, Data, Training, Budget):
        for name in model.model_fields:
            assert f"\n| `{name}` |" in keys, (model.__name__, name)
    for table in TABLES.values():
        for column in table:
            assert f"\n| `{column.name}` | {column.dtype} |" in columns
    for name in (*METRICS, *FIGURES):
        assert f"| `{name}" in metrics
    for name in ("load_matrix", "run", "load_results", "Gate", "Method", "Parts", "cosine_logits"):
        assert f"\n### {name}\n" in python


def test_the_help_of_plot_names_every_figure(kdbench):
    said = kdbench("plot", "-h").out
    assert [name for name in FIGURES if name not in said] == []


def test_the_generated_pages_say_what_is_allowed(generated):
    keys = generated["reference/matrix-file.md"]
    assert '| `precision` | `"fp32"`, `"tf32"`, `"bf16"`, `"fp16"` | `"fp32"` |' in keys
    assert "| `repeats` | integer, from 1 up to 100,000 | `1` |" in keys
    assert "| `interval_width` | number, above 0 up to 1 | `0.02` |" in keys
    assert "| `crop` | 2 of: number, above 0 up to 1 | unset | random resized crop" in keys


def test_ci_runs_the_readmes_test_command():
    ci = (REPOSITORY / ".ci/run").read_text()
    (command,) = re.findall(
        r"^ +(python3 -m venv .*nox -s tests)$",
        (REPOSITORY / "README.md").read_text(),
        re.MULTILINE,
    )
    for part in command.split("&&"):
        words = part.replace("-q ", "").split()
        assert words[-1] in ci
        assert words[0].split("/")[-1].replace("pip", "python -m pip").split()[0] in ci


def test_the_readmes_commands_exist(capsys):
    readme = (REPOSITORY / "README.md").read_text()
    commands = {info.name or info.callback.__name__ for info in app.registered_commands}
    used = {word for word in re.findall(r"kdbench ([a-z]+)\b", readme) if word in commands}
    assert used == commands
    for command in used:
        assert main([command, "--help"]) == 0
        told = capsys.readouterr().out
        for option in set(re.findall(rf"kdbench {command} [^\n`]*?(--[a-z]+)", readme)):
            assert option in told, (command, option)


def test_the_generated_pages_have_options_of_pytest_profiles_and_exit_codes(generated):
    assert "--kd-memory-update" in generated["reference/pytest.md"]
    assert "assert_at_most" in generated["reference/pytest.md"]
    for name in known_profiles():
        assert f"## {name}\n" in generated["reference/device-profiles.md"]
    assert "| 130 |" in generated["reference/environment.md"]


def test_each_command_has_a_short_option_and_examples_in_its_help(capsys):
    commands = [info.callback.__name__ for info in app.registered_commands]
    assert set(EXAMPLES) == set(commands)
    assert main(["-h"]) == 0
    assert "Usage: kdbench" in capsys.readouterr().out
    for command in commands:
        assert main([command, "-h"]) == 0
        told = capsys.readouterr().out
        assert main([command, "--help"]) == 0
        assert capsys.readouterr().out == told
        for example in EXAMPLES[command]:
            assert f"  {example}\n" in told, "as it is to be typed, on a line of its own"
            assert example.startswith(f"kdbench {command}")
            options = told.partition("Examples:")[0]
            assert all(option in options for option in re.findall(r"--[a-z]+", example))


def test_the_profiles_are_named_where_one_is_asked_for(capsys):
    assert len(known_profiles()) > 3
    for command in ("predict", "check"):
        main([command, "-h"])
        told = " ".join(capsys.readouterr().out.split())
        assert f"The device: {', '.join(known_profiles())}, or a profile of your own." in told


def test_the_version_is_one():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    namespace = {}
    text = (REPOSITORY / "kdbench/__init__.py").read_text()
    exec(re.search(r"^__version__ = .*$", text, re.MULTILINE)[0], namespace)
    assert project["version"] == namespace["__version__"]


def test_constraints_pin_what_the_project_needs():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    pinned = {
        line.split("==")[0].lower().replace("_", "-")
        for line in (REPOSITORY / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    groups = project["dependency-groups"].values()
    needed = [*project["project"]["dependencies"], *(item for group in groups for item in group)]
    names = {re.split(r"[<>=\[ ]", item)[0].lower() for item in needed}
    assert names <= pinned
    assert "torch==2.13.0" in (REPOSITORY / "constraints.txt").read_text()
