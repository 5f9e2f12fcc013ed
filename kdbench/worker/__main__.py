"""`python -m kdbench.worker JOB.json`: run one job beside the file that describes it."""

import sys
from pathlib import Path

from kdbench.common.lifetime import (
    WARNING_SIGNALS,
    die_with_parent,
    ignore_signals,
    prefer_oom_kill,
)
from kdbench.worker.exit import Ending
from kdbench.worker.job import read_job, run_job
from kdbench.worker.secrets import hide


def main(argv: list[str]) -> int:
    """Run the job; its events go to `events.jsonl` in the same folder."""
    ignore_signals(WARNING_SIGNALS)
    hide()
    ending, path = Ending(), Path(argv[0])
    job = read_job(path)
    die_with_parent(job["parent"])
    prefer_oom_kill()
    code = run_job(job, path.parent)
    ending.settle(code)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
