"""What a command prints where the output's encoding lacks its letters: readable, and no error."""

import io
import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from rich.console import Console

from kdbench.common.text import fit_encoding
from kdbench.runner.process.launcher import worker_environment
from kdbench.runner.progress import ConsoleProgress
from tests.conftest import TINY
from tests.support.analysis_fixtures import cell_row, commit

ENCODINGS = ("utf-8", "ascii", "cp1252")
# A name of every kind: letters of other scripts, an emoji, and signs that mean something elsewhere.
NAMES = ("学生", "é🙂", "a<&>b")
UNREADABLE = os.fsdecode(b"no\xffwhere")

COMMANDS = {
    "help": ["--help"],
    "an unknown command": ["shöw"],
    "show": ["show", "results"],
    "show csv": ["show", "results", "--format", "csv"],
    "nowhere": ["show", UNREADABLE],
    "compare": ["compare", "results", "after"],
    "cells": ["cells", "--matrix", "tiny.toml"],
    "tables": ["tables", "--matrix", "tiny.toml"],
    "latex": ["tables", "--matrix", "tiny.toml", "--format", "latex"],
    "unclear": ["check", "--baseline", "baseline.txt", "results"],
    "regressed": ["check", "--baseline", "baseline.txt", "after"],
    "github": [
        *("check", "--baseline", "baseline.txt", "after", "--format", "github"),
        *("--json", "report.json", "--junit", "report.xml"),
    ],
    "json": ["check", "--baseline", "baseline.txt", "after", "--format", "json"],
    "junit": [*("check", "--baseline", "baseline.txt", "after"), *("--format", "junit")],
}
# All commands in one process: each imports for a second.
CALLS = """
import json, sys
from kdbench.cli import main
told = {}
for name, arguments in json.load(open("commands.json")).items():
    sys.stdout.flush()
    start = sys.stdout.buffer.tell(), sys.stderr.buffer.tell()
    told[name] = main(arguments), *start, sys.stdout.buffer.tell(), sys.stderr.buffer.tell()
json.dump(told, open("told.json", "w"))
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """Run every command under every encoding: of each its exit code, and what it printed."""
    folder = tmp_path_factory.mktemp("encoding")
    for place, more in (("results", 0), ("after", 500_000_000)):
        rows = [
            cell_row(
                student=name,
                label=f"teacher-kd/{name}",
                allocated_peak_bytes=10**9 + more,
                step_seconds_median=None,
                epoch_seconds=None,
            )
            for name in NAMES
        ]
        commit(folder / place, rows)
    (folder / "tiny.toml").write_text(TINY)
    (folder / "commands.json").write_text(json.dumps(COMMANDS))
    made = {}
    for encoding in ENCODINGS:
        summary = folder / f"{encoding}.md"
        environment = {
            **os.environ,
            "PYTHONIOENCODING": encoding,
            "COLUMNS": "200",
            "LC_ALL": "C",
            "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
            "GITHUB_STEP_SUMMARY": str(summary),
        }
        first = [*("check", "--baseline", "baseline.txt", "results"), "--update"]
        code = f"from kdbench.cli import main; main({first})\n" + CALLS
        out, err = folder / "out", folder / "err"
        with out.open("wb") as one, err.open("wb") as other:
            subprocess.run(
                [sys.executable, "-c", code],
                cwd=folder,
                stdout=one,
                stderr=other,
                env=environment,
                check=False,
                timeout=300,
            )
        assert "Traceback" not in err.read_text(encoding, errors="replace"), err.read_bytes()
        printed = out.read_bytes(), err.read_bytes()
        told = json.loads((folder / "told.json").read_text())
        (folder / "told.json").unlink()
        made[encoding] = {
            name: (
                code,
                printed[0][start:end].decode(encoding),
                printed[1][err_start:err_end].decode(encoding),
            )
            for name, (code, start, err_start, end, err_end) in told.items()
        }
        made[encoding]["written"] = tuple(
            (folder / name).read_bytes()
            for name in ("report.json", "report.xml", "baseline.txt", summary.name)
        )
    return made


@pytest.mark.parametrize("encoding", ENCODINGS[1:])
def test_exit_codes_do_not_depend_on_the_encoding(said, encoding):
    expected = {name: said["utf-8"][name][0] for name in COMMANDS}
    assert {name: said[encoding][name][0] for name in COMMANDS} == expected
    assert [expected[name] for name in ("unclear", "regressed", "show", "nowhere")] == [3, 1, 0, 2]


@pytest.mark.parametrize("encoding", ENCODINGS[1:])
def test_what_is_printed_stays_readable(said, encoding):
    for name in COMMANDS:
        out = said[encoding][name][1]
        # as many lines, each with the same plain words
        as_meant = said["utf-8"][name][1]
        assert len(out.splitlines()) == len(as_meant.splitlines()), name
        assert out.count("?") == as_meant.count("?"), name
        assert out == fit_encoding(as_meant, encoding), name
    assert "\\u5b66\\u751f" in said[encoding]["show"][1]
    assert "no\\udcffwhere: expected a results folder" in said[encoding]["nowhere"][2]


def test_signs_have_a_likeness_in_ascii(said):
    assert "; x2 is twice its value, /2 is half of it" in said["ascii"]["show"][1]
    assert "1.00 GB  ->  1.50 GB" in said["ascii"]["regressed"][1]
    assert "×2 is twice its value, ÷2" in said["cp1252"]["show"][1]
    assert "1.00 GB  ->  1.50 GB" in said["cp1252"]["regressed"][1]
    assert "1.00 GB  →  1.50 GB" in said["utf-8"]["regressed"][1]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_formats_for_programs_say_the_same_in_any_encoding(said, encoding):
    findings = json.loads(said[encoding]["json"][1])["findings"]
    assert {finding["label"] for finding in findings} == {f"teacher-kd/{name}" for name in NAMES}
    cases = ElementTree.fromstring(said[encoding]["junit"][1].encode("utf-8")).iter("testcase")
    assert {case.get("name") for case in cases} == {f"teacher-kd/{name}" for name in NAMES}


@pytest.mark.parametrize("encoding", ENCODINGS[1:])
def test_files_are_in_utf8_whatever_the_terminal_takes(said, encoding):
    assert said[encoding]["written"] == said["utf-8"]["written"]
    assert all("teacher-kd/学生".encode() in text for text in said["utf-8"]["written"][2:])


def test_a_run_of_a_script_has_a_console_of_any_encoding():
    """Its console is its own, and no run ends for want of a line."""
    file = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    ConsoleProgress(Console(file=file, width=80)).note("é → 3 µs")
    file.seek(0)
    assert file.read() == "\\xe9 -> 3 us\n"


def test_a_workers_log_takes_any_letter():
    given = worker_environment({"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}, network=False)
    code = "import locale; print('→\\udcff', locale.getpreferredencoding(False))"
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, check=True)
    assert done.stdout.decode().lower() == "→\\udcff utf-8\n"
