"""Several storms at once: one of all faults, the others of kills; their counts are added up."""

import json
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

from tests.chaos.deck import ALL
from tests.chaos.matrices import SWEEPS


def run_jobs(options):
    """Run the jobs that the options ask for; returns the exit code.

    The first has every fault and every sweep, each at least once; the kills that are wanted are the
    others' work. They kill where starting again is quick: in a fork's sweep, where not each cell
    imports torch.
    """
    quick = [name for name in options.sweeps if SWEEPS[name].launch == "fork"] or options.sweeps
    kills = [fault.name for fault in ALL if fault.kills and fault.name in options.faults]
    others = options.jobs - 1
    with tempfile.TemporaryDirectory(prefix="kdbench-jobs-") as folder:
        reports = [Path(folder) / f"{number}.json" for number in range(options.jobs)]
        jobs = [_start(options, reports[0], "a", options.faults, options.sweeps, 0)]
        jobs += [
            _start(options, report, letter, kills, quick, -(-options.kills // others))
            for report, letter in zip(reports[1:], "bcdefghijkl", strict=False)
        ]
        for job in jobs:
            job.join()
        told = [json.loads(report.read_text()) for report in reports if report.exists()]
    result = _sum(told)
    result.setdefault("problems", [])
    result["jobs_without_a_report"] = options.jobs - len(told)
    for name, value in result.items():
        if name != "problems":
            print(f"{name.replace('_', ' ')}: {json.dumps(value)}", flush=True)
    if options.report:
        options.report.write_text(json.dumps(result, indent=2) + "\n")
    wrong = ("problems", "never_met", "jobs_without_a_report")
    return 1 if any(result[name] for name in wrong) else 0


def _start(options, report, letter, faults, sweeps, kills):
    """Run one job in a thread that passes on what it prints; its seeds are its own."""
    command = [sys.executable, "-u", "-m", "tests.chaos", "--jobs", "1", "--kills", str(kills)]
    command += ["--seeds", ",".join(f"{seed}{letter}" for seed in options.seeds)]
    command += ["--faults", ",".join(faults), "--sweeps", ",".join(sweeps)]
    command += ["--report", str(report)]

    def run():
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            for line in process.stdout:
                print(f"{letter} {line}", end="", flush=True)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def _sum(told):
    """Add up counts, by kind where there are kinds; a time is the longest."""
    result = {}
    for report in told:
        for name, value in report.items():
            if name == "seconds":
                result[name] = max(result.get(name, 0), value)
            elif name == "not_to_be_had":
                result[name] = result.get(name, {}) | value
            elif isinstance(value, dict):
                result[name] = dict(
                    sorted((Counter(result.get(name, {})) + Counter(value)).items())
                )
            else:
                result[name] = result.get(name, type(value)()) + value
    met = result.get("faults", {})
    result["never_met"] = sorted(set(result.get("never_met", ())) - met.keys())
    result["not_to_be_had"] = {
        name: why for name, why in result.get("not_to_be_had", {}).items() if name not in met
    }
    return result
