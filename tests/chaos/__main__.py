"""`python -m tests.chaos`: see the package's docstring."""

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.chaos.deck import NAMES, Deck
from tests.chaos.jobs import run_jobs
from tests.chaos.matrices import SWEEPS
from tests.chaos.outside import mount_disk, unmount_disk
from tests.chaos.sandbox import Sandbox
from tests.chaos.storm import Storm
from tests.chaos.tally import Tally

LONG_SWEEPS = ("profile-fork", "train-fork", "profile-spawn", "profile-fork", "train-spawn")
# What no sweep on a CPU can show, and where it is shown.
ELSEWHERE = {"driver-lost": "needs a card or its stand-in: tests/runner/test_planes.py"}
_APART = "KDBENCH_CHAOS_APART"


def main(arguments):
    options = _parser().parse_args(arguments)
    # A shell that starts this in the background has these ignored, which children inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    if options.jobs > 1:
        return run_jobs(options)
    folder = Path(tempfile.mkdtemp(prefix="kdbench-chaos-")).resolve()
    tally = Tally(options.kills, options.faults, lambda line: print(line, flush=True))
    _storms(options, folder, tally)
    tally.lacks |= ELSEWHERE
    tally.print()
    if options.report:
        options.report.write_text(json.dumps(tally.result(), indent=2) + "\n")
    if tally.wrong:
        print(f"what is left of it: {folder}")
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if tally.wrong else 0


def _storms(options, folder, tally):
    """One after the other, over the sweeps and seeds in turn, until all that is wanted was had."""
    references, decks = {}, {}

    def reference(name):
        if name not in references:
            sandbox = Sandbox(folder / f"undisturbed-{name}", SWEEPS[name])
            run = sandbox.start()
            if run.wait():
                raise SystemExit(f"an undisturbed run failed: {run.told()}")
            references[name] = sandbox.root
        return references[name]

    sweeps = options.sweeps
    for number in itertools.count():
        if number >= len(set(sweeps)) and not tally.wanted():
            return
        name, seed = sweeps[number % len(sweeps)], options.seeds[number % len(options.seeds)]
        draw = random.Random(f"{seed} {name} {number}")
        if seed not in decks:
            decks[seed] = Deck(options.faults, random.Random(seed), first=not decks)
        deck = decks[seed]
        place = folder / f"{number}-{name}-{seed}"
        sandbox = Sandbox(place, SWEEPS[name])
        # Every other one on a small disk of its own, where that is allowed.
        disk = number % 2 == 0 and mount_disk(sandbox.out)
        tally.begin(f"{number}: {name}, seed {seed}{', a disk of its own' if disk else ''}")
        wrong = tally.result()["problems"]
        Storm(sandbox, deck, draw, tally).run(lambda name=name: reference(name))
        tally.lacks |= deck.lacks
        if disk and tally.result()["problems"] != wrong:
            shutil.copytree(sandbox.out, place / "out", dirs_exist_ok=True)
        if disk:
            unmount_disk(sandbox.out)


def _parser():
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--kills", type=int, default=200, help="so many at least")
    parser.add_argument("--seeds", type=_listed, default=["1", "2", "3"], help="of all chance")
    parser.add_argument("--faults", type=_listed, default=list(NAMES), help=", ".join(NAMES))
    parser.add_argument("--sweeps", type=_listed, default=list(LONG_SWEEPS), help=", ".join(SWEEPS))
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="so many storms at once, most of them of kills alone: what they wait for is no work",
    )
    parser.add_argument("--report", type=Path, metavar="FILE.json", help="all counts, and problems")
    return parser


def _listed(text):
    return [part.strip() for part in text.split(",") if part.strip()]


def _apart(arguments):
    """Go on among mounts of our own, if that is allowed: they go when this ends, however."""
    if _APART in os.environ:
        return
    for namespaces in (("--mount",), ("--user", "--map-root-user", "--mount")):
        command = ["unshare", *namespaces, "--"]
        probe = "mount -t tmpfs tmpfs /tmp"
        try:
            allowed = subprocess.run(
                [*command, "sh", "-c", probe], capture_output=True, check=False
            )
        except OSError:
            return
        if allowed.returncode == 0:
            os.environ[_APART] = "1"
            again = [sys.executable, "-m", "tests.chaos", *arguments]
            os.execvp(command[0], [*command, *again])


if __name__ == "__main__":
    _apart(sys.argv[1:])
    sys.exit(main(sys.argv[1:]))
