"""`python -m tests.hostile --seconds 600`: fire at the readers until the time is spent.

Each round takes every target in turn, with a seed that is printed: `--seed N --rounds 1 --only
TARGET` does one again. What is found is shown as the smallest example that still does it.
"""

import argparse
import itertools
import secrets
import sys
import time
from collections import Counter

from tests.hostile.targets import TARGETS, fire


def main() -> int:
    """Run the session; returns 1 where something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.hostile", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--examples", type=int, default=300, help="of each target and round")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", choices=sorted(TARGETS), action="append")
    asked = parser.parse_args()
    first = secrets.randbelow(2**31) if asked.seed is None else asked.seed
    end, wrong, counts = time.monotonic() + asked.seconds, 0, Counter()
    for number in itertools.count():
        if number == asked.rounds or time.monotonic() >= end:
            break
        for name in asked.only or TARGETS:
            told = fire(name, seed=first + number, examples=asked.examples, end=end)
            counts[name] += told.count
            print(
                f"{name} seed {first + number}: {told.count} examples, {dict(told.outcomes)}",
                flush=True,
            )
            if told.found is not None:
                wrong += 1
                print(f"FOUND by {name}, seed {first + number}:\n{told.found}", flush=True)
            if time.monotonic() >= end:
                break
    print(f"in all: {dict(counts)}; {wrong} found")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
