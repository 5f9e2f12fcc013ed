"""The README's commands run, and print what it shows."""

import os
import re
import shlex
import subprocess
import sys

import pytest

from tests.support import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
GUIDE = (REPOSITORY / "docs/how-to/measure-your-own-step.md").read_text()
#: What makes a command quick enough for a test; what it prints keeps its form.
QUICKER = {
    "predict": ["--only", "image_size=32"],
    "run": ["--set=training.epochs=1", "--set=teachers.small.fit.epochs=1", "--set=seeds=[0, 1]"],
    "--kd-memory": ["-k", "stays_small"],
}
#: Lines of a cell that the quicker command leaves out, and of times, which a busy machine marks.
LEFT_OUT = ("embed-kd/large/64px/", "time per step")


def sessions():
    """Yield each command of the README's shell sessions with the lines shown below it."""
    for block in re.findall(r"(?:^    .*\n)+", README, re.MULTILINE):
        for session in re.split(r"^    \$ ", block.replace("\\\n", ""), flags=re.MULTILINE)[1:]:
            command, *lines = session.splitlines()
            yield shlex.split(command), [line.strip() for line in lines]


def is_printed(line, output):
    """Whether a line of the output has the same words, whatever its figures are."""
    words = [word for word in line.split() if len(word) > 3 and word[0].isalpha()]
    return any(all(word in printed for word in words) for printed in output.splitlines())


@pytest.mark.usefixtures("forked_workers")
def test_the_readmes_commands_print_what_it_shows(kdbench, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    (tmp_path / "benchmarks").symlink_to(REPOSITORY / "benchmarks")
    (tmp_path / "test_train.py").write_text(re.search(r"```python\n(.*?)```", GUIDE, re.S)[1])
    # What is shown of results is shown before they are made: the run goes first.
    ordered = sorted(sessions(), key=lambda session: session[0][1] != "run")
    assert [command[:2] for command, _ in ordered].count(["kdbench", "run"]) == 1
    assert len(ordered) == 7
    for (program, *written), lines in ordered:
        arguments = [*written, *QUICKER.get(written[0], [])]
        if program == "kdbench":
            said = kdbench(*arguments)
            assert said.code == (arguments[0] == "check"), said.err
            output = said.out
        else:
            assert program == "pytest"
            done = subprocess.run(
                [sys.executable, "-m", "pytest", *arguments],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "PYTEST_ADDOPTS": "-p no:cacheprovider"},
            )
            output = done.stdout
        for line in lines:
            if not line.startswith(LEFT_OUT):
                assert is_printed(line, output), (line, output)


def test_the_readme_is_short():
    assert 600 <= len(README.split()) <= 1200
