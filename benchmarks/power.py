"""False alarms and power of the measured gate, on processes that were recorded.

    python -m benchmarks.power [--pack results/gate] [--draws 2000]

The processes are those of gate.toml: one step as it is, with a block more and with two more, which
took turns. A comparison takes n of them as "before" and n as "after". Of the same cell, a verdict
of "regressed" is a false alarm; of different ones, any other is a miss, "cannot tell" included.
The processes are taken in three ways:

- drawn: at random, without replacement, both sides from the whole recording. That asks what the
  rule does with such noise. Draws share processes, so 2,000 of them are no 2,000 experiments: the
  bounds are the middle 95 % of what random halves of the recording say, made of blocks of five
  neighbours, which vary about as much as whole recordings do (a jackknife that deletes half: Shao
  and Wu 1989, "A general theory for jackknife variance estimation", Annals of Statistics 17).
  Where no draw alarmed they say little, and the theory of the exact test has to.
- in turns: neighbours in time, the two sides alternating. Comparisons share no process, so the
  bounds are exact (Clopper and Pearson), and wide.
- in a row: n neighbours before, the next n after, as with a baseline made earlier. This asks
  besides whether the machine stays what it was. No process is shared here either.

"Busier" compares a cell with itself, drawn: before from the recording's first half, after from its
second, where others used the machine much more.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from benchmarks.recorded import DATA, gather, keep
from benchmarks.rules import KDBENCH, RULES, TOLERANCE, Processes, Rule
from kdbench.gate.verdict import judge

PATH = DATA / "gate.parquet"
SIZES = (5, 6, 8, 10, 15, 20)
COMPARED = (10, 20)
BLOCK = 5
HALVES = 100

COLUMNS = ["label", "started_at", "repeat", "threads", "flops_step", "step_seconds_median"]
COLUMNS += ["contended", "unstable", "load_average", "cpu_elsewhere", "host_peak_bytes"]


@dataclass(frozen=True)
class Condition:
    """What is compared: pairs of before and after, whose comparisons count together."""

    name: str
    pairs: tuple[tuple[Processes, Processes], ...]

    def part(self, share: float, random: np.random.Generator) -> Condition:
        """The same of a random part of every cell's processes, in blocks of neighbours."""
        cells = {id(cell): cell for pair in self.pairs for cell in pair}
        for key, cell in cells.items():
            blocks = np.array_split(np.arange(len(cell)), len(cell) // BLOCK)
            chosen = random.choice(len(blocks), round(share * len(blocks)), replace=False)
            cells[key] = cell.at(np.concatenate([blocks[b] for b in sorted(chosen)]))
        return Condition(self.name, tuple((cells[id(a)], cells[id(b)]) for a, b in self.pairs))


def cells_of(table: pd.DataFrame) -> list[tuple[float, Processes]]:
    """Work of a step and processes of each cell, in the order of work."""
    cells = []
    for _, own in table.sort_values("repeat").groupby("label"):
        steps = np.array(own["step_seconds"].tolist())
        contended = own["contended"].to_numpy(dtype=bool)
        load = own["cpu_elsewhere"].to_numpy()
        cells.append((own["flops_step"].iloc[0], Processes(steps, contended, load)))
    return sorted(cells, key=lambda cell: cell[0])


def conditions(table: pd.DataFrame) -> list[Condition]:
    """Every cell against itself, and the first one against each with more work."""
    (least, first), *others = cells_of(table)
    same = Condition("A/A", tuple((cell, cell) for cell in (first, *(c for _, c in others))))
    return [same, *(Condition(f"{w / least - 1:+.1%} work", ((first, c),)) for w, c in others)]


def busier(table: pd.DataFrame) -> Condition:
    """Every cell against itself, from the first half of the time to the second."""
    halves = (np.array_split(np.arange(len(cell)), 2) for _, cell in cells_of(table))
    pairs = zip(cells_of(table), halves, strict=True)
    return Condition("busier", tuple((cell.at(a), cell.at(b)) for (_, cell), (a, b) in pairs))


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
            outcomes[rule(before.at(left), after.at(right))] += 1
    return outcomes


def bounds(condition: Condition, n: int, *, rule: Rule, draws: int) -> tuple[float, float] | None:
    """95 % bounds of the share of "regressed", from halves of the recording; None if too small."""
    random = np.random.default_rng(1)
    shares = []
    for half in range(HALVES):
        part = condition.part(0.5, random)
        if any(len(a) < (2 * n if a is b else n) for a, b in part.pairs):
            return None
        found = drawn(part, n, rule=rule, draws=max(1, draws // len(part.pairs)), seed=half)
        shares.append(found["regressed"] / found.total())
    low, high = np.quantile(shares, (0.025, 0.975))
    return float(low), float(high)


def in_turns(count: int, n: int, *, same: bool) -> Iterator[tuple[range, range]]:
    """Places of neighbours that alternate: of one cell every other, of two cells the same ones."""
    if same:
        for start in range(0, count - 2 * n + 1, 2 * n):
            yield range(start, start + 2 * n, 2), range(start + 1, start + 2 * n, 2)
    else:
        for start in range(0, count - n + 1, n):
            yield range(start, start + n), range(start, start + n)


def in_a_row(count: int, n: int, *, same: bool) -> Iterator[tuple[range, range]]:
    """Places of n neighbours and of the next n; of two cells, also the other way round in time."""
    for start in range(0, count - 2 * n + 1, 2 * n):
        first, second = range(start, start + n), range(start + n, start + 2 * n)
        yield first, second
        if not same:
            yield second, first


def neighbours(condition: Condition, n: int, *, rule: Rule, order) -> Counter:
    """Outcomes of comparisons that share no process."""
    return Counter(
        rule(before.at(list(left)), after.at(list(right)))
        for before, after in condition.pairs
        for left, right in order(min(len(before), len(after)), n, same=before is after)
    )


def pack(folder: Path, path: Path = PATH) -> None:
    """Keep every timed step of every process of the matrix."""
    processes = gather(folder)
    if processes["label"].nunique() != 3:
        raise SystemExit(f"{folder}: expected the three cells of gate.toml")
    keep(processes, COLUMNS, path)


def _share(found: Counter, outcome: str = "regressed") -> str:
    return f"{found[outcome] / found.total():.1%}"


def _exact(found: Counter) -> str:
    sure = binomtest(found["regressed"], found.total()).proportion_ci(0.95)
    return f"{found['regressed']} of {found.total()} ({sure.low:.0%} to {sure.high:.0%})"


def line_of(condition: Condition, n: int, *, draws: int) -> str:
    """A condition with n processes a side."""
    found = drawn(condition, n, rule=KDBENCH, draws=draws)
    sure = bounds(condition, n, rule=KDBENCH, draws=max(1, draws // 4))
    between = "" if sure is None else f" ({sure[0]:.1%} to {sure[1]:.1%})"
    turns, row = (
        _exact(neighbours(condition, n, rule=KDBENCH, order=order))
        for order in (in_turns, in_a_row)
    )
    return (
        f"  n = {n:2}: regressed {_share(found)}{between}, cannot tell "
        f"{_share(found, 'cannot-tell')}, held {_share(found, 'held')}, improved "
        f"{_share(found, 'improved')}; regressed in turns {turns}, in a row {row}"
    )


def chapter(title: str, table: pd.DataFrame, *, draws: int) -> Iterator[str]:
    """What the rule of `kdbench check` says of these processes."""
    yield title
    for condition in conditions(table):
        sides = [side.steps.min(axis=1) for side in condition.pairs[-1]]
        spread = ", ".join(f"{np.std(v, ddof=1) / np.mean(v):.1%}" for v in sides)
        change = judge(*(v.tolist() for v in sides), tolerance=TOLERANCE)
        yield (
            f" {condition.name}: {len(sides[0])} and {len(sides[1])} processes, deviations "
            f"{spread}, fastest steps {change.reason}"
        )
        for n in SIZES:
            yield line_of(condition, n, draws=draws)


def comparison(table: pd.DataFrame, *, draws: int) -> Iterator[str]:
    """How often each rule calls these processes slower."""
    found = [*conditions(table), busier(table)]
    for n in COMPARED:
        yield f"every rule on all processes, n = {n}: {', '.join(c.name for c in found)}"
        for name, rule in RULES.items():
            shares = (_share(drawn(c, n, rule=rule, draws=draws // len(c.pairs))) for c in found)
            yield f"  {name}: {', '.join(shares)}"


def report(table: pd.DataFrame, *, draws: int) -> Iterator[str]:
    """The study, line by line."""
    yield from chapter("all processes", table, draws=draws)
    alone = table[~table["contended"].astype(bool)]
    yield from chapter("processes that were not contended", alone, draws=draws)
    yield from comparison(table, draws=draws)


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
