"""The composite action and the workflows in the docs: they parse, and their scripts do as told."""

import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from kdbench.cli import main
from kdbench.gate.baseline import read_baseline
from kdbench.gate.emit import FORMATS
from kdbench.matrix.file import load_matrix
from kdbench.spec.gated_metrics import GATED_METRICS
from tests.conftest import TINY
from tests.support import REPOSITORY

ACTION = yaml.safe_load((REPOSITORY / "action.yml").read_text())
PAGE = (REPOSITORY / "docs/how-to/gate-in-ci.md").read_text()


def script(name):
    (step,) = [s for s in ACTION["runs"]["steps"] if s.get("name") == name]
    return step


def environment(step, **inputs):
    """The step's environment, its expressions filled in as the runner does."""
    defaults = {name: told.get("default", "") for name, told in ACTION["inputs"].items()}
    values = {f"inputs.{name}": value for name, value in (defaults | inputs).items()}
    values["github.action_path"] = str(REPOSITORY)

    def filled(text):
        return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda found: values[found[1]], text)

    return {name: filled(value) for name, value in step["env"].items()}


def run(step, folder, **inputs):
    command = ["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c", step["run"]]
    own = environment(step, **{name.replace("_", "-"): value for name, value in inputs.items()})
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    files = {"RUNNER_TEMP": str(folder), "GITHUB_PATH": str(folder / "path")}
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **own, **files, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def recorder(tmp_path):
    """Put a `kdbench` and a `python` on the path that write down how they were called."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("kdbench", "python"):
        tool = folder / name
        tool.write_text(f'#!/bin/sh\nfor a; do echo "{name} $a"; done >> "{tmp_path}/called"\n')
        tool.chmod(0o755)

    def called():
        return (tmp_path / "called").read_text().splitlines()

    return called


def test_every_input_is_used_and_no_expression_is_in_a_script():
    text = (REPOSITORY / "action.yml").read_text()
    for name in ACTION["inputs"]:
        assert f"${{{{ inputs.{name} }}}}" in text
    for step in ACTION["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
        assert ("run" in step) == (step.get("shell") == "bash")


def test_its_options_are_the_commands(capsys):
    main(["check", "--help"])
    told = capsys.readouterr().out
    for option in re.findall(r"(--[a-z]+)=", script("Check")["run"]):
        assert option in told, option


def test_inputs_reach_the_command_word_by_word(tmp_path, recorder):
    evil = "a b'; touch x; $(touch y) `touch z`"
    done = run(
        script("Check"),
        tmp_path,
        baseline=evil,
        matrix="m.toml",
        only="method=embed-kd\nstudent=base, large",
        set='data.name="a b"\n\ntraining.batch_size=3',
        results="-r",
    )
    assert done.returncode == 0, done.stderr
    assert [line.removeprefix("kdbench ") for line in recorder()] == [
        "check",
        "--format=github",
        f"--baseline={evil}",
        "--matrix=m.toml",
        '--set=data.name="a b"',
        "--set=training.batch_size=3",
        "--only=method=embed-kd",
        "--only=student=base, large",
        "--",
        "-r",
    ]
    assert not {"x", "y", "z"} & {path.name for path in tmp_path.iterdir()}


def test_installing_pins_what_the_tests_run_with(tmp_path, recorder):
    (tmp_path / "kdbench/bin").mkdir(parents=True)
    shutil.copy(tmp_path / "bin/python", tmp_path / "kdbench/bin/python")
    done = run(script("Install kdbench"), tmp_path, packages="-e ./own other", torch_index="INDEX")
    assert done.returncode == 0, done.stderr
    words = " ".join(line.removeprefix("python ") for line in recorder())
    pip = f"-m pip install --quiet -c {REPOSITORY}/constraints.txt"
    assert words == (
        f"-m venv {tmp_path}/kdbench {pip} --index-url INDEX torch {pip} {REPOSITORY} "
        f"{pip} -e ./own other"
    )
    assert (tmp_path / "path").read_text() == f"{tmp_path}/kdbench/bin\n"
    assert (REPOSITORY / "constraints.txt").exists()


def test_the_gates_exit_code_is_the_steps(tmp_path):
    (tmp_path / "bin").mkdir()
    tool = tmp_path / "bin/kdbench"
    tool.write_text(f'#!/bin/sh\nexec {sys.executable} -m kdbench "$@"\n')
    tool.chmod(0o755)
    (tmp_path / "tiny.toml").write_text(TINY)
    done = run(script("Check"), tmp_path, baseline="none.txt", matrix="tiny.toml")
    assert done.returncode == 2
    assert done.stdout.startswith("::error title=kdbench check::none.txt: no baseline there")


def workflows():
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    return [yaml.safe_load(block) for block in blocks]


def test_the_workflows_in_the_docs_parse_and_name_inputs_that_exist(capsys):
    whole, part = workflows()
    steps = whole["jobs"]["memory"]["steps"]
    (command,) = [s["run"] for s in steps if "kdbench check" in s.get("run", "")]
    main(["check", "--help"])
    told = capsys.readouterr().out
    for option in re.findall(r"--[a-z]+", command):
        assert option in told, option
    (used,) = [s for s in part["steps"] if "kdbench" in s["uses"]]
    assert set(used["with"]) <= set(ACTION["inputs"])
    required = {name for name, told in ACTION["inputs"].items() if told.get("required")}
    assert required <= set(used["with"])


def test_the_page_names_every_figure_input_and_format():
    for name in (*GATED_METRICS, *ACTION["inputs"], *FORMATS):
        assert f"`{name}`" in PAGE, name


def test_the_baseline_on_the_page_is_one(tmp_path):
    (block,) = re.findall(r"((?: {4}.*\n|\n)*? {4}end \d+ lines\n)", PAGE)
    path = tmp_path / "baseline.txt"
    path.write_text("".join(f"{line[4:]}\n" for line in block.strip("\n").splitlines()))
    (entry,) = read_baseline(path).entries.values()
    assert entry.metrics == {"allocated_peak_bytes": (1_860_000_000,)}


def test_the_tolerances_on_the_page_are_some(tmp_path):
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    path = tmp_path / "tiny.toml"
    path.write_text(TINY + block)
    given = dict(load_matrix(path).tolerances.given)
    assert given["allocated_peak_bytes"].size == 2**20
    assert given["bytes_moved_step"].fraction == 0.01
    assert given["host_peak_bytes"].off
