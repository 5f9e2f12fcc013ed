"""False alarms and power of the measured gate, on processes that were recorded.

    python -m benchmarks.power [--pack results/gate] [--draws 2000]

The processes are those of gate.toml: one step as it is, with a block more and with two more, which
took turns. A comparison takes n of them as "before" and n as "after". Of the same cell, a verdict
of "regressed" is a false alarm; of different ones, any other is a miss, "cannot tell" included.
The processes are taken in three ways:

- drawn: at random, without replacement, both sides from the whole recording. That asks what the
  rule does with such noise. Draws share processes, so 2,000 of them are no 2,000 experiments: the
  bounds are the middle 95 % of what random halves of the recording say, made of blocks of five
  neighbours, whose spread is that of the whole recording between repetitions (a jackknife that
  deletes half: Shao and Wu 1989, "A general theory for jackknife variance estimation", Annals of
  Statistics 17). Where no draw alarmed they say nothing, and the theory of the exact test has to.
- taking turns: neighbours in time, the two sides alternating. Comparisons share no process, so the
  bounds are exact (Clopper and Pearson), and wide.
- one after another: n in a row before, the next n after, as with a baseline made earlier. This asks
  besides whether the machine stays what it was. No process is shared here either.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from benchmarks.recorded import DATA, gather, keep
from benchmarks.rules import KDBENCH, RULES, TOLERANCE, Rule
from kdbench.verdict import judge

PATH = DATA / "gate.parquet"
SIZES = (5, 6, 8, 10, 15, 20)
COMPARED = 10
BLOCK = 5
HALVES = 100

COLUMNS = ["label", "started_at", "repeat", "threads", "flops_step", "step_seconds_median"]
COLUMNS += ["contended", "unstable", "load_average", "cpu_elsewhere", "host_peak_bytes"]


@dataclass(frozen=True)
class Condition:
    """What is compared: the steps of every process before and after, [processes, steps]."""

    name: str
    #: one pair, or several whose comparisons count together
    pairs: tuple[tuple[np.ndarray, np.ndarray], ...]

    def part(self, places: Sequence[int]) -> Condition:
        """The same of these processes alone; those of one cell stay the same object twice."""
        parts = ((a[places], b[places], a is b) for a, b in self.pairs)
        return Condition(self.name, tuple((a, a if same else b) for a, b, same in parts))


def conditions(processes: pd.DataFrame) -> list[Condition]:
    """Every cell against itself, and the first one against each other, in the order of work."""
    order = processes.groupby("label")["flops_step"].first().sort_values()
    cells = [
        np.array(processes[processes["label"] == label].sort_values("repeat").step_seconds.tolist())
        for label in order.index
    ]
    found = [Condition("A/A", tuple((cell, cell) for cell in cells))]
    for work, cell in zip(order.iloc[1:], cells[1:], strict=True):
        found.append(Condition(f"{work / order.iloc[0] - 1:+.1%} work", ((cells[0], cell),)))
    return found


def drawn(condition: Condition, n: int, *, rule: Rule, draws: int, seed: int = 0) -> Counter:
    """Outcomes of so many random comparisons of each pair."""
    random = np.random.default_rng(seed)
    outcomes: Counter = Counter()
    for before, after in condition.pairs:
        for _ in range(draws):
            if before is after:
                chosen = random.choice(len(before), 2 * n, replace=False)
                left, right = chosen[:n], chosen[n:]
            else:
                left, right = (random.choice(len(s), n, replace=False) for s in (before, after))
            outcomes[rule(before[left], after[right])] += 1
    return outcomes


def bounds(condition: Condition, n: int, *, rule: Rule, draws: int) -> dict[str, tuple]:
    """95 % bounds of each outcome's share, from halves of the recording."""
    random = np.random.default_rng(1)
    blocks = np.arange(len(condition.pairs[0][0])).reshape(-1, BLOCK)
    shares: dict[str, list[float]] = {}
    for half in range(HALVES):
        chosen = random.choice(len(blocks), len(blocks) // 2, replace=False)
        part = condition.part(np.sort(blocks[chosen].ravel()))
        found = drawn(part, n, rule=rule, draws=draws, seed=half)
        for outcome in ("regressed", "cannot-tell"):
            shares.setdefault(outcome, []).append(found[outcome] / found.total())
    return {k: tuple(np.quantile(v, (0.025, 0.975)).tolist()) for k, v in shares.items()}


def taking_turns(count: int, n: int, *, same: bool) -> Iterator[tuple[range, range]]:
    """Places of neighbours that alternate: of one cell every other, of two cells the same ones."""
    if same:
        for start in range(0, count - 2 * n + 1, 2 * n):
            yield range(start, start + 2 * n, 2), range(start + 1, start + 2 * n, 2)
    else:
        for start in range(0, count - n + 1, n):
            yield range(start, start + n), range(start, start + n)


def one_after_another(count: int, n: int, *, same: bool) -> Iterator[tuple[range, range]]:
    """Places of n in a row and of the next n; of two cells, also the other way round in time."""
    for start in range(0, count - 2 * n + 1, 2 * n):
        first, second = range(start, start + n), range(start + n, start + 2 * n)
        yield first, second
        if not same:
            yield second, first


def in_a_row(condition: Condition, n: int, *, rule: Rule, order) -> Counter:
    """Outcomes of comparisons that share no process."""
    return Counter(
        rule(before[list(left)], after[list(right)])
        for before, after in condition.pairs
        for left, right in order(len(before), n, same=before is after)
    )


def pack(folder: Path, path: Path = PATH) -> None:
    """Keep every timed step of every process of the matrix."""
    processes = gather(folder)
    if processes["label"].nunique() != 3:
        raise SystemExit(f"{folder}: expected the three cells of gate.toml")
    keep(processes, COLUMNS, path)


def _share(found: Counter, outcome: str) -> str:
    return f"{found[outcome] / found.total():.1%}"


def _exact(found: Counter, outcome: str = "regressed") -> str:
    sure = binomtest(found[outcome], found.total()).proportion_ci(0.95)
    return f"{found[outcome]} of {found.total()} ({sure.low:.0%} to {sure.high:.0%})"


def report_of(condition: Condition, n: int, *, draws: int) -> str:
    """One line: a condition with n processes a side."""
    found = drawn(condition, n, rule=KDBENCH, draws=draws)
    sure = bounds(condition, n, rule=KDBENCH, draws=max(1, draws // 10))
    low, high = sure["regressed"]
    rows = (
        _exact(in_a_row(condition, n, rule=KDBENCH, order=order))
        for order in (taking_turns, one_after_another)
    )
    return (
        f"  n = {n:2}: regressed {_share(found, 'regressed')} ({low:.1%} to {high:.1%}), cannot "
        f"tell {_share(found, 'cannot-tell')}, held {_share(found, 'held')}, improved "
        f"{_share(found, 'improved')}; taking turns {', one after another '.join(rows)}"
    )


def report(processes: pd.DataFrame, *, draws: int) -> Iterator[str]:
    """The study, line by line."""
    found = conditions(processes)
    for condition in found:
        before, after = (np.median(steps, axis=1) for steps in condition.pairs[0])
        whole = judge(before.tolist(), after.tolist(), tolerance=TOLERANCE)
        spread = np.std(before, ddof=1) / np.mean(before)
        says = "" if condition.pairs[0][0] is condition.pairs[0][1] else f", time {whole.reason}"
        yield f"{condition.name}: {len(before)} processes a cell, deviation {spread:.1%}{says}"
        for n in SIZES:
            yield report_of(condition, n, draws=draws)
    yield f"rules on the same processes, n = {COMPARED}: {', '.join(c.name for c in found)}"
    for name, rule in RULES.items():
        rates = (drawn(c, COMPARED, rule=rule, draws=draws) for c in found)
        yield f"  {name}: {', '.join(_share(r, 'regressed') for r in rates)}"


def main() -> None:
    parser = argparse.ArgumentParser(description="False alarms and power of the measured gate.")
    parser.add_argument("--pack", type=Path, help="results/gate, to be kept first")
    parser.add_argument("--data", type=Path, default=PATH)
    parser.add_argument("--draws", type=int, default=2000, help="comparisons drawn of each pair")
    options = parser.parse_args()
    if options.pack:
        pack(options.pack, options.data)
        print(f"wrote {options.data}")
    for line in report(pd.read_parquet(options.data), draws=options.draws):
        print(line, flush=True)


if __name__ == "__main__":
    main()
