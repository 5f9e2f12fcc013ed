"""Each kind of fault once, on real sweeps; `nox -s chaos` has 200 kills of them."""

import json
import subprocess
import sys

import pytest

from tests.chaos.deck import NAMES
from tests.support import REPOSITORY

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc"),
    pytest.mark.timeout(600),
]

# What costs a restart of the run, or a wait for a limit, is left to the long version, but for one
# of its kind; other tests have signals and hangs one by one.
LONG = (
    *("kill-runner-and-worker", "hang", "hang-deaf", "hang-in-child", "hang-up", "terminate"),
    *("kill-warm", "kill-sampler", "read-only-disk", "interrupt", "interrupt-twice", "suspend"),
    *("out-of-memory", "read-only"),
)
SHORT = tuple(name for name in NAMES if name not in LONG)


def test_nothing_is_lost(tmp_path):
    report = tmp_path / "report.json"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.chaos", "--kills", "0", "--seeds", "1"),
            *("--sweeps", "short", "--faults", ",".join(SHORT)),
            *("--report", str(report)),
        ],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    told = json.loads(report.read_text())
    assert (told["rows_lost"], told["rows_doubled"], told["orphans"]) == (0, 0, 0)
    assert told["cells_finished"] >= 8
    assert told["never_met"] == []
    assert set(told["faults"]) | set(told["not_to_be_had"]) >= set(SHORT)
