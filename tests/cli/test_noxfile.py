"""The sessions of noxfile.py: one environment for all, which is installed once."""

import shutil
import subprocess
import sys

import pytest

from tests.support import REPOSITORY

pytest.importorskip("nox")

# Stands for whatever is run in the environment: it writes down what.
PROGRAM = """#!/bin/sh
echo "$(basename "$0") $*" >> "{log}"
"""


@pytest.fixture
def clone(tmp_path):
    """Copy what nox reads beside an environment that does nothing; call to run sessions."""
    folder, log = tmp_path / "clone", tmp_path / "log"
    (folder / ".venv/bin").mkdir(parents=True)
    for name in ("noxfile.py", "pyproject.toml", "constraints.txt"):
        shutil.copy(REPOSITORY / name, folder)
    for name in ("python", "kdbench", "ruff", "lint-imports", "mypy", "mkdocs", "pytest"):
        program = folder / ".venv/bin" / name
        program.write_text(PROGRAM.format(log=log))
        program.chmod(0o755)

    def call(*sessions):
        log.write_text("")
        said = subprocess.run(
            [sys.executable, "-m", "nox", "-s", *sessions],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert said.returncode == 0, said.stderr
        return log.read_text().splitlines()

    call.folder = folder
    return call


def test_all_sessions_share_one_environment_that_is_installed_once(clone):
    pip = "python -m pip install -c constraints.txt"
    first = clone("quickstart")
    assert first[0] == f"{pip} -e ."
    assert first[1] == "kdbench run --matrix benchmarks/quickstart.toml"
    assert not any("pip" in line for line in clone("quickstart", "gate")), "no network again"
    (more,) = (line for line in clone("tests") if "pip" in line.split())
    assert more.startswith(f"{pip} "), "the groups alone, of the same constraints"
    assert "-e" not in more.split()
    assert {"pytest", "mypy", "ruff"} <= {word.partition(">")[0] for word in more.split()}
    assert not any("pip" in line.split() for line in clone("tests", "lint", "types", "fig5"))
    assert not (clone.folder / ".nox").exists(), "and none has gigabytes of its own"


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_what_is_needed_is_installed_anew_when_that_changes(name, clone):
    clone("types")
    with (clone.folder / name).open("a") as file:
        file.write("\n# changed\n")
    first, *_ = clone("quickstart")
    assert first.startswith("python -m pip install -c constraints.txt -e . ")
    assert "mypy" in first, "what is there already has the same versions"


def test_the_readme_goes_on_where_the_quickstart_ends():
    readme = (REPOSITORY / "README.md").read_text()
    start = readme.index("nox -s quickstart")
    assert start < readme.index(". .venv/bin/activate") < readme.index("    kdbench doctor")
