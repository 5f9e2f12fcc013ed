"""How often the intervals that kdbench prints cover, on processes that were recorded.

    python -m benchmarks.coverage [--pack results/aa]

The processes are those of aa.toml: one constant cell, so all that differs between them is noise.
`show` and `plot` print the interval of a median over processes by order statistics, and that of an
accuracy over seeds by Student's t, and `compare` the interval of a ratio of two. Each is held
against what it stands for, in two ways:

- drawn: samples of n are drawn at random, with replacement, from all recorded processes. The truth
  is then the recorded median (or mean) itself, and only chance decides: this tests the interval.
- in a row: every n processes that followed each other are a sample, as a user's would be. This
  tests besides whether processes are independent, which a machine with slow spells may deny.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binom, binomtest

from benchmarks.recorded import DATA, gather, keep
from kdbench.common.stats import mean_interval, median_interval, ratio_interval

SIZES = (6, 8, 10, 15, 20, 30)
DRAWS = 20_000

Interval = Callable[[Sequence[float]], tuple[float, float] | None]
# the name of a recording -> the column, its interval, and the truth that it stands for
KINDS: dict[str, tuple[str, Interval, Callable[[Sequence[float]], float]]] = {
    "profile": ("step_seconds_median", median_interval, np.median),
    "train": ("accuracy", mean_interval, np.mean),
}


@dataclass(frozen=True)
class Coverage:
    """How many of so many intervals covered the truth."""

    covered: int
    of: int

    @property
    def share(self) -> float:
        return self.covered / self.of

    @property
    def bounds(self) -> tuple[float, float]:
        """95 % interval of the share (Clopper and Pearson)."""
        found = binomtest(self.covered, self.of).proportion_ci(0.95)
        return float(found.low), float(found.high)


def nominal(n: int, mode: str) -> float:
    """What the interval of n values says of itself: order statistics cannot hit 95 % exactly."""
    if mode == "train":
        return 0.95
    low, _ = median_interval(range(n))
    # the values are their own ranks, from 0
    return 1 - 2 * float(binom.cdf(low, n, 0.5))


def drawn(values, n, *, interval, truth, draws=DRAWS, seed=0) -> Coverage:
    """Coverage of the recorded values' truth by samples of n, drawn with replacement."""
    random = np.random.default_rng(seed)
    samples = random.choice(np.asarray(values), size=(draws, n))
    return _count(samples.tolist(), interval, truth(values))


def in_a_row(values, n, *, interval, truth) -> Coverage:
    """Coverage of the recorded values' truth by neighbours that share no process."""
    samples = [values[start : start + n] for start in range(0, len(values) - n + 1, n)]
    return _count(samples, interval, truth(values))


def drawn_ratios(values, n, *, interval, truth, draws=DRAWS, seed=0) -> Coverage:
    """Coverage of 1 by the ratio of two samples of n, as `compare` has it where nothing changed."""
    random = np.random.default_rng(seed)
    covered = 0
    for before, after in random.choice(np.asarray(values), size=(draws, 2, n)).tolist():
        one, other = interval(before), interval(after)
        low, high = ratio_interval(truth(after), other, truth(before), one)
        covered += low <= 1 <= high
    return Coverage(covered, draws)


def _count(samples, interval, truth) -> Coverage:
    ends = [interval(sample) for sample in samples]
    return Coverage(sum(low <= truth <= high for low, high in ends), len(ends))


def pack(folder: Path, data: Path) -> list[Path]:
    """Keep of a results folder what the study needs: every timed step of every process."""
    written = []
    for mode, found in gather(folder).groupby("mode"):
        if found["cell_id"].nunique() != 1:
            raise SystemExit(f"{folder}: expected runs of one cell")
        columns = ["started_at", "seed", "repeat", "threads", "step_seconds_median", "accuracy"]
        columns += ["contended", "unstable", "load_average", "cpu_elsewhere", "host_peak_bytes"]
        path = data / f"aa-{mode}.parquet"
        keep(found, columns, path)
        written.append(path)
    return written


def report_of(path: Path) -> list[str]:
    """Say how often the intervals covered on one recording, a line for each size of sample."""
    mode = path.stem.removeprefix("aa-")
    column, interval, truth = KINDS[mode]
    values = pd.read_parquet(path)[column].tolist()
    spread = np.std(values, ddof=1) / np.mean(values)
    lines = [f"{path.name}: {column} of {len(values)} processes, deviation {spread:.1%}"]
    for n in (n for n in SIZES if n <= len(values)):
        chance = drawn(values, n, interval=interval, truth=truth)
        rows = in_a_row(values, n, interval=interval, truth=truth)
        low, high = rows.bounds
        ratios = drawn_ratios(values, n, interval=interval, truth=truth)
        lines.append(
            f"  n = {n:2}: says {nominal(n, mode):.1%}, drawn {chance.share:.1%}, in a row "
            f"{rows.covered} of {rows.of} (95 % interval {low:.0%} to {high:.0%}); "
            f"ratios of two such, drawn {ratios.share:.1%}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description="How often the printed intervals cover.")
    parser.add_argument("--pack", type=Path, help="results/aa, to be kept first")
    parser.add_argument("--data", type=Path, default=DATA)
    options = parser.parse_args()
    if options.pack:
        for path in pack(options.pack, options.data):
            print(f"wrote {path}")
    for path in sorted(options.data.glob("aa-*.parquet")):
        print("\n".join(report_of(path)))


if __name__ == "__main__":
    main()
