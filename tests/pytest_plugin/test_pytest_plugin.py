"""The fixture `kd_memory` as a project's own tests meet it, in runs of pytest of their own."""

import json
import re

import pytest

# What the runs within this process are to find there: pytester has each import the rest anew, which
# numpy and torch do not survive.
import kdbench.pytest_plugin.recorded
import kdbench.worker.probes.user_step  # noqa: F401
from tests.support import REPOSITORY

pytest_plugins = ["pytester"]

PAGE = (REPOSITORY / "docs/how-to/measure-your-own-step.md").read_text()
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
STEP = """
import torch

def make(width=8):
    model = torch.nn.Linear(width, 3)
    images = torch.ones(5, width)
    def step():
        model.zero_grad()
        model(images).sum().backward()
    return step, model
"""


def peak(width):
    """The peak of that step: weights and gradients, images, the loss and its gradient."""
    return 4 * (2 * (width * 3 + 3) + 5 * width + 2)


@pytest.fixture
def run(pytester, monkeypatch):
    """Run a test file; in this process, which has torch already, unless it is to be `alone`."""
    # within a worker of xdist's, where it takes the run for a part, pytest-benchmark times nothing
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)

    def call(text, *arguments, alone=False):
        (pytester.path / "test_train.py").write_text(text)
        run_pytest = pytester.runpytest_subprocess if alone else pytester.runpytest_inprocess
        return run_pytest("-p", "no:cacheprovider", *arguments)

    return call


def test_the_documents_example(run, pytester):
    wrote = run(EXAMPLE, "--kd-memory-update", "--benchmark-disable", alone=True)
    wrote.assert_outcomes(passed=3)
    record = pytester.path / "test_train.kd_memory.cpu.txt"
    assert "test_a_step_needs_what_it_needed" in record.read_text()
    again = run(EXAMPLE, "--benchmark-json=told.json", "--benchmark-max-time=0.1")
    again.assert_outcomes(passed=3)
    (told,) = json.loads((pytester.path / "told.json").read_text())["benchmarks"]
    kept = told["extra_info"]
    assert kept["peak_bytes"] > 4 * (64 * 256 + 256 + 256 * 10 + 10) * 3, "weights and their state"
    assert kept["source"] == "ledger"
    assert kept["operations"] > 0
    again.stdout.fnmatch_lines([f"*::test_time_and_memory * {kept['peak_bytes']:,} *"])


def test_bytes_counted_by_hand(run):
    text = STEP + (
        "def test_it(kd_memory):\n"
        "    step, model = make()\n"
        "    used = kd_memory(step, model=model)\n"
        f"    assert used.peak_bytes == {peak(8)}\n"
        "    assert used.categories['parameters'] == 4 * 27\n"
    )
    run(text).assert_outcomes(passed=1)


def test_a_failure_says_what_holds_the_bytes(run):
    text = STEP + (
        "def test_it(kd_memory):\n"
        "    step, model = make(1000)\n"
        "    kd_memory(step, model={'student': model}).assert_at_most('1 kB')\n"
    )
    told = run(text)
    told.assert_outcomes(failed=1)
    told.stdout.fnmatch_lines(
        ["*the step's peak is *above the limit of 1,000 B*", "*by category:*", "*parameters*B*"]
    )
    told.stdout.fnmatch_lines(["*by module:*", "*student (parameters)*B*"])


def test_growth_over_the_record_is_told(run):
    text = STEP + (
        "def test_it(kd_memory):\n"
        "    step, model = make(WIDTH)\n"
        "    kd_memory.check(kd_memory(step, model=model))\n"
    )
    run(text.replace("WIDTH", "8"), "--kd-memory-update").assert_outcomes(passed=1)
    run(text.replace("WIDTH", "8")).assert_outcomes(passed=1)
    grown = run(text.replace("WIDTH", "9"))
    grown.assert_outcomes(failed=1)
    grown.stdout.fnmatch_lines(["*allocated_peak_bytes*"])
    grown.stdout.fnmatch_lines(["*parameters +12 B*"])


def test_without_a_record_it_fails_and_says_how_to_write_one(run):
    text = STEP + (
        "def test_it(kd_memory):\n"
        "    step, model = make()\n"
        "    kd_memory.check(kd_memory(step, model=model))\n"
    )
    told = run(text)
    told.assert_outcomes(failed=1)
    told.stdout.fnmatch_lines(["*--kd-memory-update*"])


def test_a_run_that_does_not_use_it_imports_no_torch(run):
    text = "import sys\n\ndef test_it():\n    assert 'torch' not in sys.modules\n"
    text += "    assert 'pandas' not in sys.modules\n"
    run(text, alone=True).assert_outcomes(passed=1)


def test_without_pytest_benchmark(run):
    text = STEP + (
        "def test_it(kd_memory):\n    step, model = make()\n    kd_memory(step, model=model)\n"
    )
    told = run(text, "-p", "no:benchmark", "--kd-memory")
    told.assert_outcomes(passed=1)
    told.stdout.fnmatch_lines([f"*::test_it * {peak(8):,} *"])


def test_what_reports_are_told_of_each_step(run, pytester):
    text = STEP + (
        "def test_it(kd_memory):\n"
        "    step, model = make()\n"
        "    kd_memory(step, model=model)\n"
        "    kd_memory(step, model=model, name='again')\n"
        "def test_one_name_twice(kd_memory):\n"
        "    step, model = make()\n"
        "    kd_memory(step, model=model, name='x')\n"
        "    kd_memory(step, model=model, name='x')\n"
    )
    told = run(text, "--junit-xml=told.xml")
    told.assert_outcomes(passed=1, failed=1)
    told.stdout.fnmatch_lines(["*InputError: kd_memory: name: *called 'x' already*"])
    xml = (pytester.path / "told.xml").read_text()
    for step in ("", "again."):
        assert f'<property name="kd_memory.{step}peak_bytes" value="{peak(8)}"' in xml


def test_a_step_that_raises_is_shown_and_the_next_test_runs(run):
    text = STEP + (
        "def test_it(kd_memory):\n"
        "    def step():\n"
        "        raise OSError('of the step')\n"
        "    kd_memory(step)\n"
        "def test_next(kd_memory):\n"
        "    step, model = make()\n"
        "    first = kd_memory(step, model=model)\n"
        "    second = kd_memory(step, model=model, name='again')\n"
        "    assert first.peak_bytes == second.peak_bytes\n"
    )
    told = run(text)
    told.assert_outcomes(failed=1, passed=1)
    told.stdout.fnmatch_lines(["*OSError: of the step*"])


def test_under_xdist(run):
    text = STEP + (
        "import pytest\n"
        "@pytest.mark.parametrize('width', [8, 9])\n"
        "def test_it(kd_memory, width):\n"
        "    step, model = make(width)\n"
        "    kd_memory(step, model=model)\n"
    )
    told = run(text, "-n", "2", "--kd-memory", alone=True)
    told.assert_outcomes(passed=2)
    # in the order in which they ended
    told.stdout.fnmatch_lines_random([f"*test_it?{width}? * {peak(width)} *" for width in (8, 9)])
    refused = run(text, "-n", "2", "--kd-memory-update", alone=True)
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    refused.stderr.fnmatch_lines(["*--kd-memory-update writes to one file: run it without -n*"])


def test_a_compared_run_shows_bytes_beside_times(run, pytester):
    text = STEP + (
        "def test_it(kd_memory, benchmark):\n"
        "    step, model = make(WIDTH)\n"
        "    kd_memory(step, model=model)\n"
        "    benchmark.pedantic(step, rounds=2)\n"
    )
    run(text.replace("WIDTH", "8"), "--benchmark-save=before").assert_outcomes(passed=1)
    told = run(text.replace("WIDTH", "9"), "--benchmark-compare=0001")
    told.assert_outcomes(passed=1)
    now, before = f"*::test_it (NOW) * {peak(9)} *", f"*::test_it (0001_before) * {peak(8)} *"
    told.stdout.fnmatch_lines([now, f"{before} +44 (+11.46%) *"])
