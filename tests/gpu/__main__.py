"""Gather the evidence that needs a GPU, and pack it: `python -m tests.gpu [--archive FILE]`.

It runs the checks of this folder, holds the ledger and the model of the allocator against the
allocator's own history of each cell, then runs Figure 4 in full and predicts it, and writes
results, figures, the doctor's report and the output of all of it to results/reference/<card>/.
What fails is in the archive too, and in the exit code: nothing is left out silently.
"""

import argparse
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
# by words of the card's name; the first that fits
PROFILES = {
    "h200": "h200",
    "h100": "h100",
    "a100-40gb": "a100-40gb",
    "a100": "a100",
    "4090": "rtx4090",
    "t4": "t4",
}
CHECKS = Path(__file__).with_name("gpu_checks.py")


def main():
    options = parse()
    name = re.sub(r"[^A-Za-z0-9]+", "-", card_name(options.device)).strip("-").lower()
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    kdbench = [sys.executable, "-m", "kdbench"]
    run = [
        *kdbench,
        "run",
        "--matrix",
        str(options.matrix),
        "--device",
        options.device,
        "--out",
        str(folder),
    ]
    histories = [sys.executable, "-m", "tests.gpu.histories", "--matrix", str(options.matrix)]
    histories += ["--device", options.device, "--out", str(folder / "histories")]
    profile = profile_of(name)
    predict = [*kdbench, "predict", "--matrix", str(options.matrix), "--profile", profile]
    predict += ["--out", str(folder / "predicted")]
    sides = ["--measured", str(folder), "--predicted", str(folder / "predicted")]
    sides += ["--out", str(folder / "predicted.json")]
    if options.preset:
        predict += ["--preset", options.preset]
        run += ["--preset", options.preset]
        histories += ["--preset", options.preset]
    steps = {
        "doctor": [*kdbench, "doctor"],
        "checks": [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CHECKS)],
        "allocations": histories,
        "replays": [sys.executable, "-m", "tests.gpu.replays", str(folder / "histories")],
        "run": run,
        "show": [*kdbench, "show", str(folder)],
        "plot": [*kdbench, "plot", str(folder), "--format", "png,svg"],
        "predict": predict,
        "predicted": [sys.executable, "-m", "tests.gpu.predictions", *sides],
    }
    if options.device == "cpu":  # a rehearsal of this script, without what needs a card
        del steps["checks"]
    failed = [step for step, command in steps.items() if not logged(command, folder / step)]
    with tarfile.open(options.archive or folder.with_suffix(".tar.gz"), "w:gz") as archive:
        archive.add(folder, arcname=name)
    print(f"{folder}: {'failed: ' + ', '.join(failed) if failed else 'all well'}")
    return 1 if failed else 0


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--matrix", type=Path, default=REPOSITORY / "benchmarks" / "fig4.toml")
    parser.add_argument("--preset", default=None)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / "reference")
    parser.add_argument("--archive", type=Path)
    return parser.parse_args()


def card_name(device):
    if device == "cpu":
        return "cpu"
    import torch  # noqa: PLC0415 - a rehearsal on the CPU does without

    return torch.cuda.get_device_name(device)


def profile_of(name):
    """The device profile of a card by its name; the nearest, and said so, where it has none."""
    if name == "cpu":
        return "cpu"
    for part, profile in PROFILES.items():
        if all(word in name.split("-") for word in part.split("-")):
            return profile
    print(f"no device profile for {name}: predicted as for an A100", flush=True)
    return "a100"


def logged(command, stem):
    """Run a command with its output kept; whether it ended well."""
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    with stem.with_suffix(".txt").open("w") as output:
        done = subprocess.run(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
            env={**os.environ, "PYTHONPATH": path},
            cwd=REPOSITORY,
        )
    print(f"{stem.name}: exit code {done.returncode}", flush=True)
    if done.returncode:
        print(stem.with_suffix(".txt").read_text()[-4000:], flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
