"""Every bad input: one message that names file and key, exit code 2, and nothing written."""

import errno
import os
import re

import pytest

from kdbench.analysis import results
from tests.conftest import TINY

# (what is replaced in the tiny matrix, by what, what the message must hold)
BROKEN_FILES = {
    "unknown key": ("mode =", "moda =", ["moda: unknown key", "did you mean 'mode'"]),
    "unknown key in a table": (
        "batch_size = 8",
        "batch_sise = 8",
        ["training.batch_sise: unknown key", "did you mean 'batch_size'"],
    ),
    "unknown key of a student": (
        "depth = 2",
        "depht = 2",
        ["students.small", "unknown key", "'depth'"],
    ),
    "unknown axis": (
        'student = ["small"]',
        'studnt = ["small"]',
        ["axes.studnt: unknown axis", "did you mean 'student'"],
    ),
    "missing axis": ("image_size = [8]", "", ["axes.image_size: this axis is needed"]),
    "wrong type": (
        "batch_size = 8",
        'batch_size = "8"',
        ["training.batch_size: expected an integer, found '8' (str)"],
    ),
    "wrong type of a table": (
        "[data]",
        "[data.deeper]",
        ["data.", "expected a value", "unknown key", "needed"],
    ),
    "wrong type in an axis": (
        "image_size = [8]",
        'image_size = ["8"]',
        ["axes.image_size[0]: expected an integer, found '8'"],
    ),
    "unknown method": (
        '"embed-kd"]\nstudent',
        '"embedd-kd"]\nstudent',
        ["axes.method[1]: unknown method 'embedd-kd'", "did you mean 'embed-kd'"],
    ),
    "unknown student": (
        'student = ["small"]',
        'student = ["smal"]',
        ["axes.student[0]: unknown student 'smal'", "did you mean 'small'"],
    ),
    "unknown teacher": (
        'teacher = ["dwarf"]',
        'teacher = ["dwarv"]',
        ["axes.teacher[0]: unknown teacher 'dwarv'", "did you mean 'dwarf'"],
    ),
    "no teacher": ('teacher = ["dwarf"]', "", ["axes.teacher: the method", "needs a teacher"]),
    "image size and patch": (
        "image_size = [8]",
        "image_size = [10]",
        ["students.small.patch_size: image size 10 is not divisible by the patch size 4"],
    ),
    "teacher's image size and patch": (
        "image_size = 16",
        "image_size = 20",
        ["teachers.dwarf.patch_size: image size 20", "patch size 8", "the nearest that is: 16"],
    ),
    "width and heads": (
        "width = 16",
        "width = 17",
        ["students.small.width: width 17 is not divisible by 2 heads"],
    ),
    "nothing left": (
        "[students.small]",
        '[[exclude]]\nstudent = "small"\n[students.small]',
        ["exclude: no cells left"],
    ),
    "unknown axis in exclude": (
        "[students.small]",
        '[[exclude]]\nstuden = "small"\n[students.small]',
        ["exclude[0].studen: unknown axis"],
    ),
    "wrong value in exclude": (
        "[students.small]",
        '[[exclude]]\nmethod = "kd"\n[students.small]',
        ["exclude[0].method: unknown method 'kd'"],
    ),
    "incomplete include": (
        "[students.small]",
        '[[include]]\nstudent = "small"\n[students.small]',
        ["include[0].method: expected a value for the axis 'method'"],
    ),
    "not TOML": ("[axes]", "[axes", ["not valid TOML", "line"]),
    "a preset that is broken": (
        "axes.method = [",
        "axis.method = [",
        ["preset 'control'", "axis: unknown key", "did you mean 'axes'"],
    ),
    "a name that leads elsewhere": ('name = "tiny"', 'name = "../x"', ["name: expected"]),
    "a seed twice": (
        "threads = 1",
        "threads = 1\nseeds = [0, 1, 0]",
        ["seeds: expected different seeds, found [0, 1, 0]"],
    ),
    "fewest steps": ("min_steps = 2", "min_steps = 1", ["budget.min_steps", "found 1"]),
    "fewest steps above the most": (
        "min_steps = 2",
        "min_steps = 9",
        ["budget.max_steps: expected at least budget.min_steps, 9, found 8"],
    ),
    "fewest steps above the most there are unless set": (
        "min_steps = 2\nmax_steps = 8",
        "min_steps = 300",
        ["budget.min_steps: expected at most budget.max_steps, 200 unless set, found 300"],
    ),
    "a preset's most steps below the fewest": (
        "axes.method = [",
        "budget = {min_steps = 4, max_steps = 3}\naxes.method = [",
        ["(preset 'control'): budget.max_steps: expected at least budget.min_steps, 4, found 3"],
    ),
    "not a number": (
        "batch_size = 8",
        "batch_size = 8\nalpha2 = nan",
        ["training.alpha2", "finite"],
    ),
    "huge": ("batch_size = 8", "batch_size = 8000000000", ["training.batch_size", "1048576"]),
    "fewer images than a batch": (
        "train_images = 64",
        "train_images = 4",
        ["data.train_images: expected at least one batch of 8 images, found 4"],
    ),
    "training on noise": (
        'mode = "profile"',
        'mode = "train"',
        ["data.source", "needs real images", '"digits"'],
    ),
    "pretrained without a checkpoint": (
        "[teachers.dwarf]",
        '[teachers.dwarf]\nweights = "pretrained"',
        ["teachers.dwarf.checkpoint", "a local folder, found none"],
    ),
}


@pytest.mark.parametrize("case", BROKEN_FILES)
def test_broken_matrix_files(case, kdbench, tiny, tmp_path):
    old, new, expected = BROKEN_FILES[case]
    assert old in TINY
    tiny.write_text(TINY.replace(old, new, 1))
    before = sorted(tmp_path.rglob("*"))
    for command in (["run", "--device", "cpu"], ["cells"]):
        said = kdbench(*command, "--matrix", tiny)
        assert said.code == 2, said
        assert said.out == ""
        assert str(tiny) in said.err
        if case == "wrong type of a table":
            assert any(part in said.err for part in expected), said.err
        else:
            for part in expected:
                assert part in said.err, said.err
        assert len(said.err.strip().splitlines()) == 1, said.err
    assert sorted(tmp_path.rglob("*")) == before, "nothing is written"


BROKEN_ARGUMENTS = {
    "missing file": (["run", "--matrix", "nowhere.toml"], ["nowhere.toml: cannot read", "no such"]),
    "a folder": (["run", "--matrix", "."], ["expected a TOML file, found a folder"]),
    "unknown preset": (
        ["run", "--matrix", "{tiny}", "--preset", "contrl"],
        ["unknown preset 'contrl'", "did you mean 'control'"],
    ),
    "set without a value": (
        ["run", "--matrix", "{tiny}", "--set", "training.batch_size"],
        ["--set: expected KEY=VALUE", "--set training.batch_size=32"],
    ),
    "set with a bare word": (
        ["run", "--matrix", "{tiny}", "--set", "mode=profile"],
        ["--set: mode: expected a TOML value, found 'profile'", 'mode="profile"'],
    ),
    "set with more than a value": (
        ["run", "--matrix", "{tiny}", "--set", "mode=1\nname=2"],
        ["--set: mode: expected a TOML value"],
    ),
    "set of an unknown key": (
        ["run", "--matrix", "{tiny}", "--set", "training.batchsize=3"],
        ["--set: training.batchsize: unknown key", "did you mean 'batch_size'"],
    ),
    "set to what cannot be": (
        ["run", "--matrix", "{tiny}", "--set", "axes.image_size=[8, 0]"],
        ["--set: axes.image_size[1]: "],
    ),
    "set to a seed twice": (
        ["run", "--matrix", "{tiny}", "--device", "cpu", "--set", "seeds=[0, 0]"],
        ["--set: seeds: expected different seeds, found [0, 0]"],
    ),
    "set to fewer steps than the fewest": (
        ["run", "--matrix", "{tiny}", "--set", "budget={{min_steps = 6, max_steps = 5}}"],
        ["--set: budget.max_steps: expected at least budget.min_steps, 6, found 5"],
    ),
    "set through a value": (
        ["run", "--matrix", "{tiny}", "--set", "mode.deeper=3"],
        ["--set: mode.deeper", "no table"],
    ),
    "only without a value": (
        ["run", "--matrix", "{tiny}", "--only", "method"],
        ["--only: expected COLUMN=V1,V2"],
    ),
    "only of an unknown column": (
        ["run", "--matrix", "{tiny}", "--only", "metod=embed-kd"],
        ["--only: unknown column 'metod'", "'method'"],
    ),
    "only with nothing left": (
        ["run", "--matrix", "{tiny}", "--only", "method=embed"],
        ["--only: no cells left", "'embed-kd'"],
    ),
    "a device that is not there": (
        ["run", "--matrix", "{tiny}", "--device", "cuda:7"],
        ["--device", "'cuda:7'"],
    ),
    "no device at all": (["run", "--matrix", "{tiny}", "--device", "gpu"], ["--device", "'gpu'"]),
    "unknown status": (
        ["run", "--matrix", "{tiny}", "--device", "cpu", "--retry", "fail"],
        ["--retry: unknown status 'fail'", "'failed'"],
    ),
    "no results there": (["show", "nowhere"], ["nowhere: expected a results folder"]),
    "results in a file": (["plot", "{tiny}"], ["expected a results folder, found a file"]),
    "not a results folder": (["show", "."], ["not a results folder", "tiny.toml"]),
    "unknown figure": (
        ["plot", "{finished}", "--figure", "fig44"],
        ["unknown figure 'fig44'", "'fig4'"],
    ),
    "unknown metric": (
        ["plot", "{finished}", "--metric", "alocated"],
        ["unknown metric 'alocated'", "'allocated'"],
    ),
    "unknown format": (["plot", "{finished}", "--format", "gif"], ["'gif'", "'png'"]),
    "unknown format of a table": (
        ["show", "{finished}", "--format", "jsn"],
        ["--format", "did you mean 'json'"],
    ),
    "unknown reference": (
        ["show", "{finished}", "--reference", "teacher-kd/small/8px/dwarv"],
        ["'teacher-kd/small/8px/dwarf'"],
    ),
    "unknown environment": (["show", "{finished}", "--environment", "h100"], ["h100", "cpu"]),
    "unknown command": (["shwo"], ["shwo"]),
    "unknown option": (["run", "--matrx", "x"], ["--matrx"]),
    "no matrix named": (["run"], ["FILE, or --matrix FILE: a matrix file is needed"]),
    "no matrix named to predict": (["predict"], ["FILE, or --matrix FILE: a matrix file is need"]),
    "no matrix named to list": (["cells"], ["FILE, or --matrix FILE: a matrix file is needed"]),
    "no matrix named for tables": (["tables"], ["FILE, or --matrix FILE: a matrix file is need"]),
    "two matrices named": (["run", "{tiny}", "--matrix", "x"], ["one matrix file is expected"]),
    "a folder that has one": (["cells", "."], ["found a folder; it has 'tiny.toml'"]),
    "a misspelt file": (["cells", "tny.toml"], ["no such file", "did you mean 'tiny.toml'?"]),
}


@pytest.mark.parametrize("case", BROKEN_ARGUMENTS)
def test_broken_arguments(case, kdbench, tiny, finished, tmp_path):
    arguments, expected = BROKEN_ARGUMENTS[case]
    before = sorted(tmp_path.rglob("*")), sorted(finished.rglob("*"))
    said = kdbench(*(a.format(tiny=tiny, finished=finished) for a in arguments))
    assert said.code == 2, said
    assert "Traceback" not in said.err
    for part in expected:
        assert part in said.err, said.err
    assert (sorted(tmp_path.rglob("*")), sorted(finished.rglob("*"))) == before


LONG = "a" * 300
TOO_LONG = {
    "show": ["show", LONG],
    "plot": ["plot", LONG],
    "compare": ["compare", LONG, "{finished}"],
    "compare with": ["compare", "{finished}", LONG],
    "check": ["check", LONG, "--baseline", "{baseline}"],
    "baseline": ["check", "{finished}", "--baseline", LONG],
    "doctor": ["doctor", LONG],
    "doctor --repair": ["doctor", LONG, "--repair"],
    "run": ["run", "--matrix", "{tiny}", "--device", "cpu", "--out", LONG],
}


@pytest.mark.parametrize("case", TOO_LONG)
def test_a_name_that_no_file_can_have(case, kdbench, tiny, finished, predicted):
    named = {"tiny": tiny, "finished": finished, "baseline": predicted.path}
    said = kdbench(*(a.format(**named) for a in TOO_LONG[case]))
    assert said.code == 2, said
    (line,) = said.err.splitlines()
    assert line.startswith(f"kdbench: {LONG}"), line


def test_a_disk_that_cannot_be_read_is_one_line(kdbench, monkeypatch):
    def broken(*_where, **_how):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(results, "load_results", broken)
    said = kdbench("show", "results")
    assert (said.code, said.err) == (2, "kdbench: input/output error\n")


def test_without_a_command_the_help_is_printed(kdbench):
    alone, asked = kdbench(), kdbench("--help")
    assert (alone.code, asked.code) == (2, 0)
    assert alone.out == asked.out
    assert alone.err == ""
    assert "Usage: kdbench [OPTIONS] COMMAND [ARGS]...\n" in alone.out


@pytest.mark.parametrize("presets", ["3", "'control'", "[1]"])
def test_presets_that_are_no_table(presets, kdbench, tiny):
    tiny.write_text(f"presets = {presets}\n" + TINY.partition("[presets")[0])
    said = kdbench("cells", "--matrix", tiny)
    assert (said.code, "presets: expected a table, found" in said.err) == (2, True), said


def test_unreadable_file(kdbench, tmp_path):
    path = tmp_path / "latin.toml"
    path.write_bytes(b'name = "\xe9"')
    said = kdbench("run", "--matrix", path)
    assert (said.code, "not UTF-8" in said.err) == (2, True)


MARKS = {
    "UTF-8": (b"\xef\xbb\xbf", "utf-8", None),
    "CRLF": (b"", "crlf", None),
    "UTF-16": (b"\xff\xfe", "utf-16-le", "expected UTF-8 text, found UTF-16"),
    "UTF-16 the other way": (b"\xfe\xff", "utf-16-be", "expected UTF-8 text, found UTF-16"),
    "UTF-16 without a mark": (b"", "utf-16-le", "expected text, found binary data"),
    "UTF-32": (b"\xff\xfe\0\0", "utf-32-le", "expected UTF-8 text, found UTF-32"),
}


def encoded(text, case):
    mark, encoding, told = MARKS[case]
    if encoding == "crlf":
        text, encoding = text.replace("\n", "\r\n"), "utf-8"
    return mark + text.encode(encoding), told


@pytest.mark.parametrize("case", MARKS)
def test_a_byte_order_mark_is_no_part_of_a_file(case, kdbench, tiny, predicted):
    own = tiny.with_name("mine.toml")
    own.write_bytes(encoded('title = "my card"\ndevice = "cpu"\n', case)[0])
    raw, told = encoded(predicted.path.read_text(), case)
    predicted.path.write_bytes(raw)
    checked = predicted()
    tiny.write_bytes(encoded(TINY, case)[0])
    for said, file, want in (
        (kdbench("cells", tiny), tiny, 0),
        (checked, predicted.path, 0),
        # which gets as far as the amount of memory
        (kdbench("predict", tiny.with_name("no.toml"), "--profile", own, "--fits", "?"), own, 2),
    ):
        assert said.code == (2 if told else want), said
        assert (str(file) in said.err and str(told) in said.err) == bool(told), said.err


def test_a_file_that_may_not_be_read_is_one_line(kdbench, tiny, monkeypatch):
    def refused(path, *_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(type(tiny), "open", refused)
    said = kdbench("cells", tiny)
    told = f"kdbench: {tiny}: cannot read the matrix file: permission denied\n"
    assert (said.code, said.err) == (2, told)


def test_a_matrix_file_may_be_an_argument(kdbench, tiny, predicted):
    for command in ("cells", "tables"):
        assert kdbench(command, tiny) == kdbench(command, "--matrix", tiny)
    said = kdbench("check", tiny, "--baseline", predicted.path)
    assert (said.code, said.out) == (0, predicted().out)
    said = kdbench("check", tiny, "--matrix", tiny, "--baseline", predicted.path)
    assert said.code == 2
    assert "one matrix file is expected" in said.err


@pytest.mark.parametrize("way", ["/dev/fd", "-"])
def test_a_pipe_is_read_once_and_has_no_name(way, kdbench, tiny, monkeypatch):
    plain = kdbench("cells", tiny)

    def piped(text):
        reader, writer = os.pipe()
        os.write(writer, text.encode())
        os.close(writer)
        before = os.dup(0)
        try:
            if way == "-":
                os.dup2(reader, 0)
            return kdbench("cells", "-" if way == "-" else f"/dev/fd/{reader}")
        finally:
            os.dup2(before, 0)
            os.close(before)
            os.close(reader)

    assert piped(TINY) == plain
    said = piped(TINY.replace('name = "tiny"', ""))
    assert said.code == 2
    assert "name: results are kept under the matrix" in said.err
    assert 'give it one: name = "my-matrix"' in said.err
    assert "expected a matrix file, found it empty" in piped("").err


NAMES = {
    "matrix": ('name = "tiny"', 'name = "{}"', "name: "),
    "data": ('name = "noise"', 'name = "{}"', "data.name: "),
    "student": ("[students.small]", '[students."{}"]', "students.{}: "),
    "axis": ('student = ["small"]', 'student = ["{}"]', "axes.student[0]: "),
}


@pytest.mark.parametrize("place", NAMES)
def test_a_name_that_may_not_be_one_is_told_in_words(place, kdbench, tiny):
    old, new, key = NAMES[place]
    for name, near in (
        ("my model", "my-model"),
        ("größe/2", "groe-2"),
        ("-x", "x"),
        ("模型", None),
    ):
        tiny.write_text(TINY.replace(old, new.format(name), 1))
        said = kdbench("cells", tiny)
        assert said.code == 2
        assert (
            f"{tiny}: {key.format(name)}expected a name of letters from A to Z, digits" in said.err
        )
        assert f"found '{name}'" in said.err
        assert (f"; '{near}' would do" in said.err) == (near is not None)
        assert not any(mark in said.err for mark in ("[A-Za-z", "pattern", "[key]"))


def test_a_file_whose_name_is_none_is_told_a_near_one(kdbench, tiny):
    other = tiny.with_name("my model.toml")
    other.write_text(TINY.replace('name = "tiny"', ""))
    said = kdbench("cells", other)
    assert said.code == 2
    assert 'give it a name: name = "my-model"' in said.err


# What a setting may be beside its type; what is told of it has to be our own words.
BOUNDS = {
    "seeds=[-1]": "seeds[0]: expected at least 0, found -1",
    "seeds=[]": "seeds: expected at least 1 value(s), found []",
    "training.batch_size=0": "training.batch_size: expected at least 1, found 0",
    "training.batch_size=1.5": "training.batch_size: expected an integer, found 1.5 (float)",
    "training.learning_rate=0": "training.learning_rate: expected more than 0, found 0",
    "training.alpha2=inf": "training.alpha2: expected a finite number, found inf",
    "students.small.attention_dropout=1": "attention_dropout: expected less than 1, found 1",
    'data.image_column="{long}"': "data.image_column: expected at most 1000 characters, found",
    "data.crop=[0.1]": "data.crop",
    'data.revision=""': "data.revision: expected at least 1 character(s), found ''",
}


@pytest.mark.parametrize("setting", BOUNDS)
def test_what_is_out_of_bounds_is_told_in_words(setting, kdbench, tiny):
    said = kdbench("cells", tiny, "--set", setting.format(long="x" * 2000))
    assert said.code == 2
    assert BOUNDS[setting] in said.err
    for foreign in ("Input should", "String should", "greater than", "expected: ", "pydantic"):
        assert foreign not in said.err


def test_a_file_that_is_too_large_is_not_read(kdbench, tmp_path):
    path = tmp_path / "large.toml"
    path.write_bytes(b"#" * 1_000_001)
    said = kdbench("cells", "--matrix", path)
    assert (said.code, "at most 1000000 bytes" in said.err) == (2, True)


def test_a_mistake_in_the_file_is_not_blamed_on_what_was_set(kdbench, tiny):
    tiny.write_text(TINY.replace("image_size = [8]", "image_size = [9]"))
    for setting, blamed in (("seeds=[1]", tiny), ("students.small.patch_size=5", "--set")):
        said = kdbench("cells", "--matrix", tiny, "--set", setting)
        assert said.code == 2
        assert said.err.startswith(f"kdbench: {blamed}: students.small.patch_size: "), said


def test_a_mistake_in_the_file_is_not_blamed_on_a_preset(kdbench, tiny):
    wrong = "threads: expected an integer, found 'one' (str)\n"
    tiny.write_text(TINY.replace("threads = 1", 'threads = "one"'))
    for preset in ((), ("--preset", "control")):
        said = kdbench("cells", "--matrix", tiny, *preset)
        assert (said.code, said.err) == (2, f"kdbench: {tiny}: {wrong}")
    tiny.write_text(TINY + '[presets.other]\nthreads = "one"\n')
    said = kdbench("cells", "--matrix", tiny)
    assert (said.code, said.err) == (2, f"kdbench: {tiny} (preset 'other'): {wrong}")


def test_a_preset_may_complete_the_file_and_is_blamed_for_its_own_mistake_alone(kdbench, tiny):
    whole = TINY.replace("[axes]", "[presets.whole.axes]").partition("[presets.control]")[0]
    tiny.write_text(whole)
    assert kdbench("cells", "--matrix", tiny, "--preset", "whole").code == 0
    tiny.write_text(whole + '[presets.whole]\nthreads = "one"\n')
    said = kdbench("cells", "--matrix", tiny, "--preset", "whole")
    assert said.code == 2
    assert said.err.startswith(f"kdbench: {tiny} (preset 'whole'): threads: expected an integer")


def test_too_many_cells_are_told_before_they_are_built(kdbench, tiny):
    sizes = list(range(4, 4 * 400, 4))
    widths = ", ".join(str(size) for size in sizes)
    said = kdbench(
        "cells",
        "--matrix",
        tiny,
        "--set",
        f"axes.image_size=[{widths}]",
        "--set",
        f"axes.batch_size=[{widths}]",
    )
    assert said.code == 2
    assert "axes: expected at most 100000 cells" in said.err


def test_results_folder_that_cannot_be_written(kdbench, tiny, tmp_path):
    (tmp_path / "results").write_text("in the way")
    said = kdbench("run", "--matrix", tiny, "--device", "cpu")
    assert said.code == 2
    assert "cannot write results here" in said.err


def test_terminal_escapes_of_a_file_do_not_reach_the_terminal(kdbench, tiny):
    tiny.write_text(TINY.replace("batch_size = 8", '"\\u001b[31mred" = 8'))
    said = kdbench("cells", "--matrix", tiny)
    assert said.code == 2
    assert not re.search(r"\x1b", said.err)


def test_two_filters_in_one_are_refused(kdbench, tiny):
    said = kdbench("cells", "--matrix", tiny, "--only", "launch=spawn,method=embed-kd")
    assert said.code == 2
    assert said.err == (
        "kdbench: --only: expected values of 'launch', found a second filter, 'method=embed-kd'; "
        "give each its own: --only method=embed-kd\n"
    )
