"""The gate's reports for GitHub, JUnit and JSON: complete, and obeyed by nobody."""

import json
import xml.etree.ElementTree as ET

import pytest

from tests.support.gated import EMBED, MB, TEACHER, stored

# A label from somebody else's file, with what terminals, markdown, XML and runners would obey.
EVIL = 'x\x1b[31m\n::error::y %0A a,b: <b>&" ##[add-mask]z | `c`'


@pytest.fixture
def evil(kdbench, tmp_path):
    """Results of an evil label that regressed; call to check them."""
    path = tmp_path / "evil.txt"
    before = stored(tmp_path / "before", methods=["teacher-kd"], label=EVIL)
    assert kdbench("check", before, "--baseline", path, "--update").code == 0
    after = stored(
        tmp_path / "after", methods=["teacher-kd"], label=EVIL, allocated_peak_bytes=3 * 10**9
    )

    def call(*arguments):
        done = kdbench("check", after, "--baseline", path, *arguments)
        assert done.code == 1
        return done

    return call


def test_nothing_in_a_label_reaches_the_terminal(evil):
    out = evil().out
    assert all(line.isprintable() for line in out.split("\n"))
    assert r"x\x1b[31m\n::error::y" in out


def test_annotations_are_one_command_a_cell_and_escaped(evil, tmp_path, monkeypatch):
    summary = tmp_path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    lines = evil("--format", "github").out.splitlines()
    commands = [line for line in lines if "::" in line]
    assert len(commands) == 1
    level, _, rest = commands[0].partition(" title=")
    title, _, message = rest.partition("::")
    assert level == "::error"
    assert "," not in title
    assert ":" not in title
    assert title.startswith("kdbench%3A x\\x1b[31m\\n%3A%3Aerror%3A%3Ay %250A a%2Cb%3A <b>&")
    assert "##[" not in commands[0]
    assert "allocated_peak_bytes regressed: 2.00 GB → 3.00 GB (+1,000,000,000 B, +50.00%25)" in (
        message
    )
    text = summary.read_text()
    assert text.startswith("before\n**fig4: regressed: 1 regressed, 4 held; 1 cell**")
    assert r"\<b>\&" in text
    assert r"\|" in text
    assert "\x1b" not in text


def test_without_a_summary_or_with_a_broken_one_the_gate_still_speaks(evil, tmp_path, monkeypatch):
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    assert "::error title=" in evil("--format", "github").out
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path))
    out = evil("--format", "github").out
    assert "::warning title=kdbench check::cannot write the job's summary: is a directory" in out


def test_broken_input_is_an_annotation_too(kdbench, tiny):
    done = kdbench("check", "--matrix", tiny, "--baseline", "none.txt", "--format", "github")
    assert done.code == 2
    assert done.out.startswith("::error title=kdbench check::none.txt: no baseline there")
    assert "none.txt: no baseline there" in done.err


def test_levels_of_annotations(predicted, predictor):
    predictor.memory = {TEACHER: {"activations": 1}}
    predictor.changes = {EMBED: {"flops_step": None}}
    out = predicted("--format", "github").out.splitlines()
    assert out[0].startswith(f"::warning title=kdbench%3A {EMBED}::flops_step not comparable")
    assert out[1].startswith(f"::notice title=kdbench%3A {TEACHER}::allocated_peak_bytes improved")
    assert len(out) == 3


def test_junit_is_xml_with_one_test_a_cell(evil, tmp_path):
    file = tmp_path / "reports" / "check.xml"
    printed = evil("--format", "junit", "--junit", file).out
    assert printed == file.read_text()
    root = ET.fromstring(printed)
    (suite,) = root.findall("testsuite")
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("1", "1", "0")
    (case,) = suite.findall("testcase")
    assert case.get("name").startswith(r"x\x1b[31m\n::error::y")
    failure = case.find("failure")
    assert "allocated_peak_bytes regressed: 2.00 GB → 3.00 GB" in failure.get("message")


def test_junit_tells_failures_errors_and_what_could_not_be_told_apart(predicted, predictor):
    predictor.memory = {TEACHER: {"activations": 60 * MB}}
    predictor.changes = {EMBED: {"status": "failed", "error": "broken"}}
    suite = ET.fromstring(predicted("--format", "junit", "--preset", "control").out)[0]
    counts = [suite.get(name) for name in ("tests", "failures", "errors", "skipped")]
    assert counts == ["3", "1", "1", "1"]
    found = {case.get("name"): [child.tag for child in case] for case in suite}
    assert found == {TEACHER: ["failure"], EMBED: ["error"], "student-only/small/8px": ["skipped"]}


def test_junit_passes_no_cell_that_was_not_compared(predicted, predictor):
    predictor.every = {"torch_version": "2.14.0"}
    suite = ET.fromstring(predicted("--format", "junit").out)[0]
    found = {case.get("name"): [child.tag for child in case] for case in suite}
    assert found == {"all cells": ["skipped"], TEACHER: ["skipped"], EMBED: ["skipped"]}


def test_json_holds_every_finding_and_comes_beside_another_format(predicted, predictor, tmp_path):
    predictor.memory = {TEACHER: {"activations": 60 * MB}}
    file = tmp_path / "check.json"
    done = predicted("--json", file)
    assert "regressed  allocated_peak_bytes" in done.out
    report = json.loads(file.read_text())
    assert (report["outcome"], report["exit_code"], done.code) == ("regressed", 1, 1)
    assert report["counts"]["regressed"] == 1
    assert len(report["findings"]) == 14
    (found,) = [f for f in report["findings"] if f["outcome"] == "regressed"]
    assert found["label"] == TEACHER
    assert found["metric"] == "allocated_peak_bytes"
    assert (found["before"], found["after"], found["unit"]) == (70 * MB, 80 * MB, "bytes")
    assert found["relative"] == pytest.approx(1 / 7)


def test_a_report_that_cannot_be_written_is_told(predicted, tmp_path):
    (tmp_path / "file").write_text("")
    done = predicted("--json", tmp_path / "file" / "x.json")
    assert done.code == 2
    assert "cannot write the report: " in done.err
