"""The baseline file: what it holds comes back, and whatever else is there is told, never obeyed."""

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.common.errors import InputError
from kdbench.gate import baseline
from kdbench.gate.baseline import is_baseline, read_baseline, render, write_baseline
from kdbench.gate.snapshot import About, Entry, Snapshot
from kdbench.spec.gated_metrics import GATED_METRICS

ABOUT = About(
    matrix="fig4",
    source="predicted",
    schema_version=4,
    torch_version="2.13.0",
    profile="cpu",
    profile_digest="5eed",
)
CELL = "embed-kd/base/32px/vit-large-patch32"


def snapshot(**changes):
    entry = Entry(
        settings={"batch_size": "64", "cell_id": "feedfacecafebeef", "teacher": None},
        metrics={"allocated_peak_bytes": (1_860_000_000,), "flops_step": (12_345,)},
        memory={
            ("activations", "student.blocks.0"): {"steady": 20_480, "first": 20_480},
            ("workspace", None): {"steady": 4},
        },
    )
    return Snapshot(ABOUT, {CELL: entry, **changes})


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problem(path):
    with pytest.raises(InputError) as caught:
        read_baseline(path)
    return str(caught.value)


# ----------------------------------------------------------------- what it looks like


def test_a_figure_is_a_line_and_reads_well(tmp_path):
    path = tmp_path / "deep" / "baseline.txt"
    write_baseline(path, snapshot())
    assert path.read_text() == (
        "kdbench-baseline 1\n"
        "# The figures that `kdbench check` compares with; `kdbench check --update` writes them "
        "anew.\n"
        "about matrix fig4\n"
        "about source predicted\n"
        "about schema_version 4\n"
        "about torch_version 2.13.0\n"
        "about profile cpu\n"
        "about profile_digest 5eed\n"
        "\n"
        f"setting {CELL} batch_size 64\n"
        f"setting {CELL} cell_id feedfacecafebeef\n"
        f"setting {CELL} teacher -\n"
        f"metric {CELL} allocated_peak_bytes 1860000000\n"
        f"metric {CELL} flops_step 12345\n"
        f"memory {CELL} activations student.blocks.0 first=20480 steady=20480\n"
        f"memory {CELL} workspace - steady=4\n"
        "\n"
        "end 13 lines\n"
    )
    assert [p.name for p in path.parent.iterdir()] == ["baseline.txt"]


def test_one_change_is_one_line_of_the_diff():
    changed = snapshot()
    entry = changed.entries[CELL]
    grown = Entry(
        entry.settings, {**entry.metrics, "allocated_peak_bytes": (1_860_000_001,)}, entry.memory
    )
    before, after = render(changed), render(Snapshot(ABOUT, {CELL: grown}))
    assert len(set(before.splitlines()) ^ set(after.splitlines())) == 2


def test_the_order_of_what_is_written_does_not_matter():
    cells = snapshot(**{"a/b": Entry({"x": "1"}, {"flops_step": (1,)})}).entries
    turned = dict(reversed(cells.items()))
    assert render(Snapshot(ABOUT, cells)) == render(Snapshot(ABOUT, turned))


def test_a_link_stays_a_link(tmp_path):
    target = written(tmp_path / "target.txt", "")
    link = tmp_path / "link.txt"
    link.symlink_to(target)
    write_baseline(link, snapshot())
    assert link.is_symlink()
    assert read_baseline(target) == snapshot()


def test_a_folder_that_cannot_be_written_to_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write the baseline: "):
        write_baseline(tmp_path / "file" / "baseline.txt", snapshot())


# ----------------------------------------------------------------- round trips

ANY = st.text(max_size=12)
NAMES = st.one_of(st.sampled_from(["-", '"', "\\", "a b", "", "\x1b[31m", "end 3 lines", "#"]), ANY)
SIZES = st.integers(0, 2**63 - 1)
TIMES = st.floats(1e-9, 1e9)


@st.composite
def metrics(draw):
    names = draw(st.lists(st.sampled_from(sorted(GATED_METRICS)), unique=True))
    known = {
        name: tuple(draw(st.lists(TIMES, min_size=1, max_size=5)))
        if GATED_METRICS[name].unit == "seconds"
        else (draw(SIZES),)
        for name in names
    }
    other = draw(st.dictionaries(NAMES.filter(lambda n: n not in GATED_METRICS), SIZES, max_size=2))
    return {**known, **{name: (size,) for name, size in other.items()}}


ENTRIES = st.builds(
    Entry,
    settings=st.dictionaries(NAMES, st.none() | NAMES, min_size=1, max_size=4),
    metrics=metrics(),
    memory=st.dictionaries(
        st.tuples(NAMES, st.none() | NAMES),
        st.dictionaries(
            st.sampled_from(["steady", "first", "precompute"]), SIZES, min_size=1, max_size=3
        ),
        max_size=4,
    ),
)
ABOUTS = st.builds(
    About,
    matrix=NAMES,
    source=st.sampled_from(["measured", "predicted"]),
    schema_version=st.integers(0, 99),
    torch_version=st.none() | NAMES,
    profile=st.none() | NAMES,
    profile_digest=st.none() | NAMES,
    device=st.none() | NAMES,
    threads=st.none() | st.integers(1, 999),
    cpu_model=st.none() | NAMES,
    gpu_name=st.none() | NAMES,
    driver_version=st.none() | NAMES,
)
SNAPSHOTS = st.builds(
    Snapshot, about=ABOUTS, entries=st.dictionaries(NAMES, ENTRIES, min_size=1, max_size=4)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("baselines")


@given(snapshot=SNAPSHOTS)
@settings(max_examples=200, deadline=None)
def test_what_is_written_comes_back(folder, snapshot):
    path = folder / "round.txt"
    write_baseline(path, snapshot)
    again = read_baseline(path)
    assert again == snapshot
    assert render(again) == path.read_text(encoding="utf-8")


@given(snapshot=SNAPSHOTS)
@settings(max_examples=100, deadline=None)
def test_nothing_in_it_reaches_a_terminal(snapshot):
    assert all(line.isprintable() for line in render(snapshot).split("\n"))


@given(raw=st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_arbitrary_bytes_are_told(folder, raw):
    with pytest.raises(InputError):
        read_baseline(written(folder / "raw.txt", raw))


@given(lines=st.lists(st.text(max_size=40) | st.sampled_from(render(snapshot()).splitlines())))
@settings(max_examples=300, deadline=None)
def test_arbitrary_lines_between_a_good_first_and_last_are_told_or_read(folder, lines):
    """Whatever passes the outer checks gives a snapshot or an InputError, and no other end."""
    text = "\n".join(line.replace("\n", " ") for line in lines)
    count = sum(bool(line.strip()) and line[0] != "#" for line in text.split("\n"))
    path = written(
        folder / "lines.txt",
        f"kdbench-baseline 1\n{text}\nend {count} lines\n".encode(errors="backslashreplace"),
    )
    try:
        found = read_baseline(path)
    except InputError:
        return
    assert found.entries


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_a_file_that_is_cut_off_is_never_taken_for_whole(folder, data):
    raw = render(snapshot()).encode()
    path = written(folder / "cut.txt", raw[: data.draw(st.integers(0, len(raw) - 2))])
    with pytest.raises(InputError):
        read_baseline(path)


# ----------------------------------------------------------------- damage, each told for itself

GOOD = render(snapshot())
DAMAGES = {
    "empty": ("", "the baseline is empty"),
    "blank": ("\n \n", "the baseline is empty"),
    "binary": (b"PAR1\0\0", "expected text, found binary data"),
    "other text": (b"caf\xe9\n", "not UTF-8 text (byte 3)"),
    "JSON": ('{"a": 1}\n', "found JSON"),
    "TOML": ("name = 1\n", "found TOML; the matrix file goes to --matrix"),
    "a TOML table": ("[axes]\n", "found TOML"),
    "XML": ("<testsuites/>\n", "found XML or HTML"),
    "a large file's pointer": (
        "version https://git-lfs.github.com/spec/v1\n",
        "Git LFS pointer; fetch",
    ),
    "prose": ("hello\n", "expected its first line to be 'kdbench-baseline 1', found 'hello'"),
    "a conflict at the top": ("<<<<<<< HEAD\n", "found an unresolved merge conflict; resolve it"),
    "a newer format": (
        GOOD.replace("baseline 1", "baseline 2", 1),
        "line 1: format 2 is newer than 1, which is read here; use that newer kdbench",
    ),
    "an older format": (
        GOOD.replace("baseline 1", "baseline 0", 1),
        "line 1: format 0 is older than 1, which is read here; write the baseline anew",
    ),
    "no format": (
        GOOD.replace("baseline 1", "baseline one", 1),
        "line 1: expected a format version, found 'one'",
    ),
    "cut off": (GOOD[:-20], "expected 'end N lines' as the last line, found"),
    "a line lost": (
        GOOD.replace(f"metric {CELL} flops_step 12345\n", ""),
        "line 17: expected 13 lines above, found 12; restore it",
    ),
    "text behind the end": (GOOD + "more\n", "as the last line, found 'more'"),
    "a conflict inside": (
        GOOD.replace("\nsetting", "\n<<<<<<< HEAD\nsetting", 1).replace("end 13", "end 14"),
        "line 10: found an unresolved merge conflict",
    ),
    "an unknown line": (
        GOOD.replace("metric", "metrics", 1),
        "line 13: expected one of 'about', 'setting', 'metric', 'memory', found 'metrics'; "
        "did you mean 'metric'",
    ),
    "too few words": (
        GOOD.replace(" 12345\n", "\n"),
        "line 14: expected at least 3 words after 'metric', found 2",
    ),
    "too many values": (
        GOOD.replace(" 12345\n", " 12345 6\n"),
        "line 14: expected one value of 'flops_step', found 2",
    ),
    "two spaces": (GOOD.replace(" 12345\n", "  12345\n"), "line 14: expected words with one space"),
    "a control character": (
        GOOD.replace("12345", "12345\x1b[31m"),
        "line 14: found a control character",
    ),
    "an open quote": (GOOD.replace("12345", '"12345'), "line 14: expected words with one space"),
    "a bad escape": (GOOD.replace("12345", r'"\q"'), "line 14: expected a JSON string"),
    "no number": (GOOD.replace("12345", "many"), "line 14: expected a number from 0 to"),
    "nan": (GOOD.replace("12345", "nan"), "line 14: expected a number from 0 to"),
    "infinite": (GOOD.replace("12345", "1e999"), "line 14: expected a number from 0 to"),
    "negative": (GOOD.replace("12345", "-5"), "line 14: expected a number from 0 to"),
    "huge": (GOOD.replace("12345", "9" * 30), "line 14: expected an integer from 0 to"),
    "thousands of digits": (GOOD.replace("12345", "9" * 9999), "line 14: expected an integer"),
    "digits of another script": (GOOD.replace("12345", "١٢"), "line 14: expected an integer"),
    "a time of 0": (
        GOOD.replace("flops_step 12345", "step_seconds 0.5 0"),
        "line 14: expected times above 0 of 'step_seconds', found 0",
    ),
    "bytes that are none": (
        GOOD.replace("steady=4", "steady=4.5"),
        "line 16: expected an integer from 0 to",
    ),
    "no stage": (GOOD.replace("steady=4", "4"), "line 16: expected STAGE=BYTES, found '4'"),
    "a stage twice": (
        GOOD.replace("steady=4", "steady=4 steady=5"),
        "line 16: 'steady' is there twice",
    ),
    "a setting twice": (
        GOOD.replace("setting " + CELL + " teacher -", "setting " + CELL + " batch_size 64"),
        "line 12: 'batch_size' is there twice",
    ),
    "a metric twice": (
        GOOD.replace("flops_step 12345", "allocated_peak_bytes 1"),
        "line 14: 'allocated_peak_bytes' is there twice",
    ),
    "a module twice": (
        GOOD.replace("workspace -", "activations student.blocks.0"),
        "line 16: 'activations student.blocks.0' is there twice",
    ),
    "a heading twice": (
        GOOD.replace("about profile cpu", "about matrix other"),
        "line 7: 'matrix' is there twice",
    ),
    "an unknown heading": (
        GOOD.replace("about profile", "about profil"),
        "line 7: expected one of 'matrix'",
    ),
    "an unknown source": (
        GOOD.replace("source predicted", "source guessed"),
        "line 4: expected a source of 'measured', 'predicted', found 'guessed'",
    ),
    "no schema": (
        GOOD.replace("about schema_version 4", "about device -"),
        "no line 'about schema_version ...'",
    ),
    "no cells": (
        re.sub(r"(setting|metric|memory) .*\n", "", GOOD).replace("end 13", "end 6"),
        "the baseline has no cells",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_told(tmp_path, name):
    text, expected = DAMAGES[name]
    path = written(tmp_path / "baseline.txt", text)
    told = problem(path)
    assert expected in told
    assert str(path) in told
    assert "\n" not in told


def test_missing_folder_and_size(tmp_path, monkeypatch):
    assert "no baseline there; the same command with --update" in problem(tmp_path / "none.txt")
    assert "expected a baseline file, found a folder" in problem(tmp_path)
    monkeypatch.setattr(baseline, "MAX_BYTES", 50)
    path = written(tmp_path / "large.txt", b"\0" * 51)
    assert "expected a baseline of at most 50 bytes, found more" in problem(path)


def test_line_ends_and_marks_of_windows_are_read(tmp_path):
    path = written(tmp_path / "baseline.txt", "\ufeff" + GOOD.replace("\n", "\r\n"))
    assert read_baseline(path) == snapshot()


def test_a_quoted_dash_is_a_name_and_no_missing_value():
    entry = Entry({"teacher": "-", "student": None}, {"flops_step": (1,)}, {("a", "-"): {"x": 1}})
    text = render(Snapshot(ABOUT, {"-": entry}))
    assert 'setting "-" teacher "-"\n' in text
    assert 'setting "-" student -\n' in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        (GOOD, True),
        (GOOD[:30], True),
        ("kdbench-baseline 99\n", True),
        ("kdbench-baselines\n", False),
        (json.dumps({}), False),
        ("# notes\n", False),
    ],
)
def test_what_an_update_may_replace(tmp_path, text, expected):
    assert is_baseline(written(tmp_path / "baseline.txt", text)) is expected
