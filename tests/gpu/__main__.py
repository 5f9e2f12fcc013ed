"""Gather the evidence that needs a GPU, and pack it: `python -m tests.gpu [--archive FILE]`.

It writes down what the card says of itself, runs the checks of this folder, holds the ledger and
the model of the allocator against the allocator's own history of each cell, runs Figure 4 in full
and predicts it, and at last asks for the peaks of a sweep of settings and of public models.
Results, figures, the doctor's report and the output of all of it go to results/reference/<card>/.
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
FOLDER = Path(__file__).parent


def main():
    options = parse()
    name = re.sub(r"[^A-Za-z0-9]+", "-", card_name(options.device)).strip("-").lower()
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    commands = steps(options, folder, profile_of(name))
    chosen = options.steps.split(",") if options.steps else list(commands)
    if unknown := set(chosen) - set(commands):
        print(f"no step {', '.join(sorted(unknown))}; there are {', '.join(commands)}")
        return 2
    failed = [step for step in chosen if not logged(commands[step], folder / step)]
    with tarfile.open(options.archive or folder.with_suffix(".tar.gz"), "w:gz") as archive:
        archive.add(folder, arcname=name)
    print(f"{folder}: {'failed: ' + ', '.join(failed) if failed else 'all well'}")
    return 1 if failed else 0


def steps(options, folder, profile):
    """Every step's command, in the order in which they run."""
    kdbench, name = [sys.executable, "-m", "kdbench"], options.matrix.stem
    matrix = ["--matrix", str(options.matrix)]
    if options.preset:
        matrix += ["--preset", options.preset]
    device = ["--device", options.device]
    sweep = ["--matrix", str(FOLDER / "sweep.toml")]
    found = {
        "doctor": [*kdbench, "doctor"],
        "properties": module("properties", "--out", folder / "properties.json"),
        "checks": [
            *[sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
            str(FOLDER / "gpu_checks.py"),
        ],
        "allocations": module("histories", *matrix, *device, "--out", folder / "histories"),
        "replays": module("replays", folder / "histories"),
        "run": [*kdbench, "run", *matrix, *device, "--out", str(folder)],
        "show": [*kdbench, "show", str(folder / name)],
        "plot": [*kdbench, "plot", str(folder / name), "--format", "png,svg"],
        "predict": [
            *[*kdbench, "predict", *matrix, "--profile", profile],
            *["--out", str(folder / "predicted")],
        ],
        "predicted": compared(folder, name),
        "sweep": [*kdbench, "run", *sweep, *device, "--out", str(folder)],
        "predict-sweep": [
            *[*kdbench, "predict", *sweep, "--profile", profile],
            *["--out", str(folder / "predicted")],
        ],
        "predicted-sweep": compared(folder, "sweep"),
        "trainings": module("trainings", "--out", folder / "trainings"),
    }
    if options.device == "cpu":  # a rehearsal of this script, without what needs a card
        for step in (
            "properties",
            "checks",
            "sweep",
            "predict-sweep",
            "predicted-sweep",
            "trainings",
        ):
            del found[step]
    return found


def module(name, *arguments):
    return [sys.executable, "-m", f"tests.gpu.{name}", *map(str, arguments)]


def compared(folder, matrix):
    return module(
        "predictions",
        *["--measured", folder / matrix / "cells"],
        *["--predicted", folder / "predicted" / matrix / "cells"],
        *["--out", folder / f"predicted-{matrix}.json"],
    )


def parse():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--matrix", type=Path, default=REPOSITORY / "benchmarks" / "fig4.toml")
    parser.add_argument("--preset", default=None)
    parser.add_argument("--out", type=Path, default=REPOSITORY / "results" / "reference")
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--steps", help="some of the steps, with commas between them")
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
