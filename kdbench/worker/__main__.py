"""`python -m kdbench.worker JOB.json`: run one job, in the folder of the file that describes it."""

import sys
from pathlib import Path

from kdbench.common.lifetime import die_with_parent, prefer_oom_kill
from kdbench.worker.job import read_job, run_job
from kdbench.worker.process import begin


def main(argv: list[str]) -> int:
    """Run the job; its events go to `events.jsonl` in the same folder."""
    leave, path = begin(), Path(argv[0])
    job = read_job(path)
    die_with_parent(job["parent"])
    prefer_oom_kill()
    leave.status = run_job(job, path.parent)
    return leave.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
