"""Files from other people: no code of theirs runs, nothing is written elsewhere, all is told."""

import io
import json
import os
import pickle
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings

from kdbench.analysis.figures import style
from kdbench.analysis.markup import Table, latex, markdown
from kdbench.analysis.row_checks import check_rows
from kdbench.cli.options import csv_value
from kdbench.common.errors import (
    InputError,
    KdbenchError,
    WorkerError,
    did_you_mean,
    quoted,
    short_repr,
)
from kdbench.gate import report_github
from kdbench.gate.findings import Finding, Report
from kdbench.gate.report_files import as_junit
from kdbench.matrix.file import load_matrix
from kdbench.pytest_plugin.summary import _valid
from kdbench.runner.process.child import open_log
from kdbench.store import arrow_schema, read_table
from tests.conftest import TINY
from tests.hostile.readers import clean, commanded
from tests.hostile.strategies import TEXTS, texts
from tests.hostile.targets import TABLE_ROWS, TARGETS, fire
from tests.support import REPOSITORY
from tests.support.analysis_fixtures import cell_row, commit, paper_rows

QUICK = settings(max_examples=100, deadline=None)

# ------------------------------------------------------------------------- what is fired at


@pytest.mark.parametrize(
    ("target", "examples"), [(t, 3 if t in ("parts", "rows", "figures") else 40) for t in TARGETS]
)
def test_a_short_round(target, examples):
    # the long one is `nox -s fuzz`
    told = fire(target, seed=1, examples=examples * {"rows": 3, "figures": 20}.get(target, 1))
    assert told.found is None, told.found
    assert told.count >= min(examples, 3)


# ------------------------------------------------------------------------------ huge numbers

HUGE = {
    "an integer of very many digits": ("batch_size = 8", "batch_size = 0x" + "f" * 99_999),
    "a decimal of very many digits": ("batch_size = 8", "batch_size = 1" + "0" * 5000),
    "an integer for a float": ("batch_size = 8", "batch_size = 8\nlearning_rate = 1" + "0" * 400),
    "tables in tables": ('mode = "profile"', "mode." + ".".join(["a"] * 5000) + " = 1"),
    "lists in lists": ('mode = "profile"', "mode = " + "[" * 20 + "]" * 20),
    "both a preset's and the file's": (
        "axes.method = [",
        f"axes.{'.'.join(['a'] * 3000)} = 1\naxes.method = [",
    ),
    "very many presets": ("[presets.control]", "\n".join(f"[presets.p{n}]" for n in range(300))),
    "very many runs": ('mode = "profile"', "repeats = 100000\nseeds = [1, 2]"),
    "very many excludes": ("[students.small]", "[[exclude]]\n" * 300 + "[students.small]"),
    "a product of weights": ("width = 16\ndepth = 2", "width = 65536\ndepth = 1024"),
    "a product of classes": ("classes = 5", "classes = 1000000"),
    "a text of a megabyte": ('mode = "profile"', f'mode = "{"x" * 900_000}"'),
    "a path that no system has": (
        'source = "synthetic"',
        f'source = "datasets"\npath = "{"x" * 3000}"',
    ),
    "a path with a zero": ('source = "synthetic"', 'source = "datasets"\npath = "a\\u0000b"'),
}


@pytest.mark.parametrize("case", HUGE)
def test_what_is_huge_is_told_in_one_line(case, tiny):
    old, new = HUGE[case]
    assert old in TINY
    written = TINY.replace(old, new, 1)
    if case == "a product of classes":
        written = written.replace("images_per_class = 8", "images_per_class = 1000000")
    tiny.write_text(written)
    code, out, err = commanded("cells", "--matrix", tiny)
    assert (code, out) == (2, ""), err
    assert len(err) < 6000


@pytest.mark.parametrize("name", ["_x", "é", "x" * 90])
def test_a_file_that_no_matrix_can_be_named_after(name, tmp_path):
    path = tmp_path / f"{name}.toml"
    path.write_text(TINY.replace('name = "tiny"', ""))
    code, _, err = commanded("cells", "--matrix", path)
    assert code == 2
    assert "cannot name the matrix after the file" in err


def test_the_key_that_is_set_is_bounded_too(tiny):
    for assignment in ("a." * 3000 + "b=1", "training.batch_size=0x" + "f" * 9999):
        code, _, err = commanded("cells", "--matrix", tiny, "--set", assignment)
        assert code == 2
        assert "--set" in err


def test_messages_are_bounded():
    assert len(short_repr("x" * 10**6)) < 300
    assert short_repr(int("f" * 9999, 16)).startswith("a value (int) too large")
    assert len(quoted("x" * 500 for _ in range(10_000))) < 20_000
    assert did_you_mean("x" * 10**6, ["x" * 10**6]) is None
    assert len(str(KdbenchError("x" * 10**6))) < 5000
    assert str(InputError("a\nb", where="c\x1bd")) == r"c\x1bd: a\nb"


# -------------------------------------------------------------------- what is no regular file


@pytest.mark.parametrize(
    "arguments",
    [("cells", "--matrix"), ("check", "{results}", "--baseline"), ("tables", "--matrix")],
)
def test_a_pipe_is_not_waited_for(arguments, tmp_path):
    commit(tmp_path / "results" / "fig4", paper_rows())
    pipe = tmp_path / "pipe.toml"
    os.mkfifo(pipe)
    words = [word.format(results=tmp_path / "results") for word in arguments]
    code, _, err = commanded(*words, pipe)
    assert code == 2
    assert "found something else" in err


@pytest.mark.parametrize("path", ["/", "/proc", "/proc/self", "/sys/kernel"])
def test_a_disk_is_not_read_for_a_matrix_file(path, tiny):
    data = f'source = "datasets"\npath = "{path}"'
    tiny.write_text(TINY.replace('source = "synthetic"', data))
    with pytest.raises(InputError, match=r"data.path: cannot read .*: a folder of the system"):
        load_matrix(tiny)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train_split", "../../other"),
        ("test_split", "/etc"),
        ("config", ".."),
        ("revision", "../../main"),
    ],
)
def test_a_name_inside_a_data_set_leads_nowhere_else(key, value, tiny):
    with pytest.raises(InputError, match=rf"data.{key}: expected a name inside the data set"):
        load_matrix(tiny, assignments=[f'data.{key}="{value}"'])


# --------------------------------------------------------------------------------- code


class Trap:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_extension_types_of_a_part_run_nothing(tmp_path):
    root = commit(tmp_path / "results" / "fig4", paper_rows())
    caught = tmp_path / "caught"
    payload = pickle.dumps(Trap(caught))
    part = sorted((root / "cells").glob("[!e]*.parquet"))[0]
    whole = pq.read_table(part, partitioning=None)
    fields = [
        field.with_metadata(
            {
                b"ARROW:extension:name": b"arrow.py_extension_type",
                b"ARROW:extension:metadata": payload,
            }
        )
        if field.name == "label"
        else field
        for field in whole.schema
    ]
    pandas = json.dumps({"index_columns": ["label"], "columns": [{"name": "label"}]})
    metadata = {**whole.schema.metadata, b"pandas": pandas.encode()}
    pq.write_table(pa.table(whole.columns, schema=pa.schema(fields, metadata=metadata)), part)
    try:
        assert len(read_table(root, "cells")) == 4
    except InputError as error:
        assert str(error).isprintable()  # noqa: PT017 - either will do
    commanded("show", root)
    assert not caught.exists()


@pytest.mark.parametrize("module", ["torch", "typer", "kdbench_trap", "sitecustomize", "pandas"])
def test_modules_in_the_current_folder_are_not_imported(module, tiny, tmp_path):
    caught = tmp_path / "caught"
    for name in {module, "torch", "typer", "json", "numpy"}:
        (tmp_path / f"{name}.py").write_text(f"open({str(caught)!r}, 'w')")
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-m", "kdbench", "cells", "--matrix", tiny],
        check=False,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not caught.exists()


# ------------------------------------------------------------------------- paths of results


def test_the_name_of_a_matrix_in_results_names_no_file_elsewhere(tmp_path):
    root = tmp_path / "deep" / "results" / "fig4"
    rows = [cell_row(matrix=name) for name in ("../../escape", "fig4")]
    commit(root, rows)
    code, out, err = commanded("plot", root, "--figure", "fig4", "--format", "svg")
    assert code == 0, err
    assert len(out.splitlines()) == 2
    written = set(tmp_path.rglob("*.svg"))
    assert len(written) == 2
    assert {path.parent for path in written} == {root / "figures"}


def test_figures_are_not_written_through_a_link(tmp_path):
    root = commit(tmp_path / "results" / "fig4", paper_rows())
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (root / "figures").symlink_to(elsewhere)
    code, _, err = commanded("plot", root)
    assert code == 2
    assert "found a link" in err
    assert not list(elsewhere.iterdir())
    (root / "figures").unlink()
    (root / "figures").mkdir()
    target = tmp_path / "target"
    target.write_text("kept")
    (root / "figures" / f".fig4.svg.{os.getpid()}").symlink_to(target)
    assert commanded("plot", root, "--figure", "fig4", "--format", "svg")[0] == 0
    assert target.read_text() == "kept"


def test_a_log_is_not_written_through_a_link(tmp_path):
    target, log = tmp_path / "target", tmp_path / "key.log"
    target.write_text("kept")
    log.symlink_to(target)
    with pytest.raises(WorkerError, match="cannot write the log"):
        open_log(log)
    log.unlink()
    for _ in range(2):
        with open_log(log) as opened:
            opened.write(b"x")
    assert (log.read_bytes(), target.read_text()) == (b"xx", "kept")


# ---------------------------------------------------------------- what is printed and written


def named(text, number):
    """A row that has a text wherever a text can be."""
    short = text[:900]
    return cell_row(
        short or "x",
        short,
        teacher=short,
        label=f"{short}{number}",
        dataset=short,
        cpu_model="a processor",
        git_revision=short,
        status="failed",
        error=text,
        contention=text,
        allocated_source=short,
        environment=json.dumps({"packages": {text: text}}),
    )


def test_names_of_results_are_shown_and_obeyed_nowhere(tmp_path):
    good = cell_row("teacher-kd", contended=True, contention="\x1b[31m", allocated_source="\x1b")
    failed = [named(text, number) for number, text in enumerate(TEXTS)]
    done = [{**row, "status": "ok"} for row in failed]
    with mock.patch("os.fsync"):
        root = commit(tmp_path / "results" / "fig4", [*failed, good], **TABLE_ROWS)
        other = commit(tmp_path / "other" / "fig4", [*done, good], **TABLE_ROWS)
    for words in (
        ("show", root),
        ("show", other),
        ("show", other, "--memory"),
        ("show", root, "--format", "csv"),
        ("compare", root, other, "--metric", "all"),
        ("compare", other, root, "--format", "markdown"),
        ("compare", root, other, "--format", "csv"),
    ):
        commanded(*words)


@pytest.mark.parametrize("column", ["cpu_model", "torch_version", "profile", "device", "matrix"])
def test_where_results_are_from_is_shown_and_obeyed_nowhere(column, tmp_path):
    evil = "\x1b]8;;http://evil.example\x1b\\x[bold]\u202e"
    rows = [cell_row(**{column: evil}), cell_row()]
    root = commit(tmp_path / "results" / "fig4", rows, **TABLE_ROWS)
    commanded("show", root)
    commanded("compare", root, root, "--before", "method=teacher-kd")
    _, _, err = commanded("show", root, "--environment", "x")
    assert "http" in err or column == "matrix"


@QUICK
@given(texts)
def test_csv_is_no_formula_and_no_escape(text):
    written = csv_value(text)
    assert clean(written)
    assert "\n" not in written
    assert not written.startswith(("=", "+", "-", "@", "\t", "\r"))


@pytest.mark.parametrize("value", [None, -1.5, 3, True, "teacher-kd/base/32px", "1 MiB"])
def test_what_is_ours_is_left_as_it_is_in_csv(value):
    assert csv_value(value) == value


def report(label):
    finding = Finding("regressed", label, "allocated_peak_bytes", 1.0, 2.0, message=label)
    return Report(
        title=label,
        matrix=label,
        baseline=label,
        labels=(label,),
        findings=(finding,),
        changed={label: {label: (label, label)}},
        notes=(label,),
    )


def escaped(text):
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@QUICK
@given(texts)
def test_junit_is_xml_with_the_label_as_its_text(text):
    root = ET.fromstring(as_junit(report(text)))
    (case,) = root.iter("testcase")
    assert case.get("name") == escaped(text) or not text
    assert case.get("classname") == escaped(text)
    assert {one.tag for one in root.iter()} == {"testsuites", "testsuite", "testcase", "failure"}


@QUICK
@given(texts)
def test_github_obeys_our_commands_alone(text):
    for line in report_github.annotate(report(text)):
        assert clean(line)
        assert "\n" not in line
        assert line.startswith("::error title=")
        assert line.count("::") == 2 or ":::" in line or "::" in text
        assert "::" not in line.partition(" title=")[2].partition("::")[0]
        assert "##[" not in line
    for line in report_github.summary(report(text)).splitlines():
        assert clean(line)


def plain(written):
    """What markdown shows of an escaped text."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", written)


@QUICK
@given(texts)
def test_markdown_shows_a_name_as_it_is(text):
    made = markdown(Table(text, ("a", "b"), (False, False), ((text, "x"),), (text,)))
    assert clean(made)
    row = next(line for line in made.splitlines() if line.endswith("| x   |"))
    cells = re.split(r"(?<!\\)(?:\\\\)*\|", row)
    assert plain(row.removeprefix("| ").removesuffix("| x   |")).strip() == escaped(text).strip()
    assert len(cells) >= 3
    active = re.sub(r"\\.", "", row.strip("| "))
    assert not re.search(r"[*_`<\[&~$#]", active)


@QUICK
@given(texts)
def test_latex_has_no_command_but_ours(text):
    made = latex(Table("t", ("a", "b"), (False, False), ((text, "x"),)))
    row = made.split(r"\midrule" + "\n")[1].split("\n" + r"\bottomrule")[0]
    assert clean(row)
    known = r"\\text(?:backslash|asciitilde|asciicircum|less|greater|bar)\{\}|\\[&%$#_{}]"
    left = re.sub(known, "", row.removesuffix(r" & x \\").removeprefix("{}"))
    assert not re.search(r"[\\&%$#_{}~^]", left)
    assert not row.startswith(("[", "*"))


@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(texts.filter(str.strip))
def test_a_drawing_is_xml_whatever_it_says(text):
    file = io.BytesIO()
    with style.drawing():
        figure = style.new_figure(3, 2)
        style.write_lines(figure, [escaped(text)[:300]], left=0.1, top=1, size=8)
        figure.savefig(file, format="svg")
    assert ET.fromstring(file.getvalue()).tag.endswith("svg")


@pytest.mark.parametrize(
    "info",
    [
        None,
        [1],
        {"peak_bytes": "x"},
        {"peak_bytes": -1, "flops": {}},
        {"a.peak_bytes": 10**400},
        {"peak_bytes": True, "torch_version": 3.5},
    ],
)
def test_saved_benchmarks_of_somebody_else_are_no_figures(info):
    assert all("peak" not in key for key in _valid(info))


def test_what_a_saved_benchmark_says_is_kept():
    info = {"peak_bytes": 5, "torch_version": "2", "flops": 3, "b.peak_bytes": 1}
    assert _valid(info) == info


# ------------------------------------------------------------------------------------ rows


@pytest.mark.parametrize(
    ("table", "column", "value", "told"),
    [
        ("cells", "label", None, "expected a value, found none"),
        ("cells", "status", "fine\x1b", "expected one of 'ok'"),
        ("cells", "image_size", -3, "expected a number from 0"),
        ("cells", "allocated_peak_bytes", 2**62, "expected a number from 0"),
        ("cells", "student", "x" * 2000, "expected at most 1000 letters"),
        ("timeline", "moment", 2**40, "expected a number from 0 to 1e+07"),
        ("memory", "bytes", -1, "expected a number from 0"),
    ],
)
def test_rows_that_no_run_writes(table, column, value, told, tmp_path):
    rows = paper_rows()
    tables = {name: [dict(row) for row in own] for name, own in TABLE_ROWS.items()}
    for row in (rows if table == "cells" else tables[table])[-1:]:
        row[column] = value
    root = commit(tmp_path / "fig4", rows, **tables)
    with pytest.raises(InputError, match=re.escape(told)) as caught:
        check_rows(read_table(root, table), table, root)
    assert str(caught.value).startswith(f"{root / table}: {column}: ")


def test_a_number_that_is_not_finite_is_missing(tmp_path):
    root = commit(tmp_path / "fig4", [cell_row(accuracy=float("nan"), utilisation=float("inf"))])
    frame = check_rows(read_table(root, "cells"), "cells", root)
    assert frame["accuracy"].isna().all()
    assert frame["utilisation"].isna().all()
    assert arrow_schema("cells").field("accuracy").nullable
