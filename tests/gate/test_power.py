"""The study of the measured gate itself, and that the gate is right on recorded processes."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from benchmarks import power, rules
from tests.support import REPOSITORY

pytestmark = pytest.mark.usefixtures("forked_workers")


def processes_of(count, *, factor=1.0, seed=0, spread=0.03, steps=12, load=0.0):
    """Processes that differ by 3 %, as a quiet machine's do."""
    random = np.random.default_rng(seed)
    levels = factor * np.exp(random.normal(0, spread, (count, 1)))
    times = levels * np.exp(random.normal(0, 0.01, (count, steps)))
    loads = load + random.uniform(0, 0.1, count)
    return rules.Processes(times, np.zeros(count, dtype=bool), loads)


def joined(*parts):
    return rules.Processes(
        *(np.concatenate([getattr(p, n) for p in parts]) for n in ("steps", "contended", "load"))
    )


@pytest.fixture(scope="module")
def recorded():
    return pd.read_parquet(power.PATH)


@pytest.mark.parametrize("order", [power.in_turns, power.in_a_row])
@pytest.mark.parametrize("same", [True, False])
def test_comparisons_of_neighbours_share_no_process(order, same):
    pairs = list(order(23, 5, same=same))
    befores = [place for left, _ in pairs for place in left]
    afters = [place for _, right in pairs for place in right]
    assert len(set(befores)) == len(befores) == len(afters) == len(set(afters))
    assert all(len(left) == len(right) == 5 for left, right in pairs)
    if same:
        assert not set(befores) & set(afters)
    assert max(befores + afters) < 23
    assert len(pairs) == (2 if same else 4)


def test_sides_that_take_turns_lie_at_the_same_time():
    (left, right), *_ = power.in_turns(20, 5, same=True)
    assert (list(left), list(right)) == ([0, 2, 4, 6, 8], [1, 3, 5, 7, 9])


def test_a_cell_against_itself_never_meets_itself():
    cell = processes_of(30)
    seen = []

    def rule(before, after):
        seen.append((set(before.load), set(after.load)))
        return "held"

    found = power.drawn(power.Condition("A/A", ((cell, cell),)), 8, rule=rule, draws=50)
    assert found == {"held": 50}
    assert all(len(a) == len(b) == 8 and not a & b for a, b in seen)


def test_a_part_has_whole_blocks_of_every_cell_and_stays_the_same_cell_twice():
    first, second = processes_of(30), processes_of(20, seed=1)
    whole = power.Condition("any", ((first, first), (first, second)))
    part = whole.part(0.5, np.random.default_rng(0))
    assert part.pairs[0][0] is part.pairs[0][1] is part.pairs[1][0]
    for kept, cell in ((part.pairs[0][0], first), (part.pairs[1][1], second)):
        places = np.flatnonzero(np.isin(cell.load, kept.load))
        assert len(places) == len(kept) == len(cell) // 2
        assert all(np.isin(place - place % 5 + np.arange(5), places).all() for place in places)
        assert (cell.at(places).steps == kept.steps).all()


@pytest.mark.parametrize(("load", "known", "blind"), [(1.0, 0, 1), (0.0, 1, 1)])
def test_a_slow_spell_alarms_in_a_row_unless_others_load_tells_of_it(load, known, blind):
    """And taking turns it does not, which is why before and after should be measured so."""
    cell = joined(processes_of(20), processes_of(20, factor=1.3, load=load))
    condition = power.Condition("A/A", ((cell, cell),))
    for rule, alarms in ((rules.KDBENCH, known), (rules.kdbench_check(load=False), blind)):
        found = power.neighbours(condition, 20, rule=rule, order=power.in_a_row)
        assert (found["regressed"], found.total()) == (alarms, 1)
        assert power.neighbours(condition, 20, rule=rule, order=power.in_turns)["regressed"] == 0


def test_contended_processes_do_not_count():
    quiet, busy = processes_of(10), processes_of(10, factor=3)
    after = rules.Processes(busy.steps, np.ones(10, dtype=bool), busy.load)
    assert rules.KDBENCH(quiet, after) == "cannot-tell"
    assert rules.kdbench_check(contended=True)(quiet, after) == "regressed"
    assert rules.KDBENCH(quiet, joined(after, processes_of(10, seed=1))) == "held"


def test_rules_that_take_steps_for_independent_alarm_where_processes_differ():
    cell = processes_of(100, seed=1, spread=0.06)
    condition = power.Condition("A/A", ((cell, cell),))
    alarms = {
        name: power.drawn(condition, 5, rule=rule, draws=400)["regressed"] / 400
        for name, rule in rules.RULES.items()
    }
    assert alarms["kdbench check"] <= 0.01
    for name in ("pytest-benchmark, mean:5%", "asv, factor 1.05", "pyperf, min-speed 5"):
        assert alarms[name] > 0.02


@pytest.mark.parametrize("name", rules.RULES)
def test_every_rule_finds_what_is_plain_and_passes_what_is_equal(name):
    before, after = processes_of(10), processes_of(10, factor=1.3, seed=1)
    assert rules.RULES[name](before, after) == "regressed"
    assert rules.RULES[name](before, before) == "held"
    assert rules.RULES[name](after, before) != "regressed"


def test_bounds_hold_what_was_drawn_and_are_wider_than_chance_among_draws():
    pair = (processes_of(100, seed=2), processes_of(100, factor=1.06, seed=3))
    condition = power.Condition("+6%", (pair,))
    share = power.drawn(condition, 6, rule=rules.KDBENCH, draws=1000)["regressed"] / 1000
    low, high = power.bounds(condition, 6, rule=rules.KDBENCH, draws=100)
    assert low < share < high
    assert high - low > 2 * 1.96 * np.sqrt(share * (1 - share) / 1000)
    assert power.bounds(condition, 51, rule=rules.KDBENCH, draws=1) is None


def test_packing_keeps_the_raw_steps_of_the_three_cells(kdbench, tmp_path):
    budget = [f"budget.{k}=2" for k in ("warmup_steps", "min_steps", "max_steps")]
    settings = [part for s in ("repeats=1", 'launch="spawn"', *budget) for part in ("--set", s)]
    matrix = REPOSITORY / "benchmarks/gate.toml"
    said = kdbench("run", "--matrix", matrix, "--out", tmp_path, "--device", "cpu", *settings)
    assert said.code == 0, said
    power.pack(tmp_path / "gate", tmp_path / "kept/gate.parquet")
    kept = pd.read_parquet(tmp_path / "kept/gate.parquet")
    assert len(kept) == 3
    for row in kept.to_dict("records"):
        assert np.median(row["step_seconds"]) == pytest.approx(row["step_seconds_median"])
    assert kept.attrs["environment"]["cpu_model"]
    names = [c.name for c in power.conditions(kept)]
    assert names == ["A/A", "+5.0% work", "+10.0% work"]
    part = next(p for p in (tmp_path / "gate/cells").glob("*.parquet") if p.stem != "empty")
    part.unlink()
    with pytest.raises(SystemExit, match="three cells"):
        power.pack(tmp_path / "gate", tmp_path / "kept/few.parquet")


def test_the_recording_is_what_the_study_says(recorded):
    assert (recorded["label"].value_counts() >= 100).all()
    assert recorded["label"].nunique() == 3
    assert recorded["step_seconds"].map(len).eq(30).all()
    medians = recorded["step_seconds"].map(np.median)
    assert np.allclose(medians, recorded["step_seconds_median"])
    assert recorded.attrs["environment"]["cpu_model"]
    # the three cells took turns: no cell ran twice before the others had run
    assert recorded.groupby("repeat")["label"].nunique().eq(3).all()
    assert recorded["repeat"].is_monotonic_increasing


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("n", power.SIZES)
def test_unchanged_recorded_processes_alarm_no_more_often_than_the_rule_says(recorded, n, alone):
    table = recorded[~recorded["contended"].astype(bool)] if alone else recorded
    found = power.drawn(power.conditions(table)[0], n, rule=rules.KDBENCH, draws=100)
    assert binomtest(found["regressed"], found.total(), 0.01, "greater").pvalue > 0.001


@pytest.mark.parametrize(("alone", "n"), [(False, 20), (True, 10)])
def test_ten_percent_more_work_is_found_in_recorded_processes(recorded, alone, n):
    table = recorded[~recorded["contended"].astype(bool)] if alone else recorded
    found = power.drawn(power.conditions(table)[2], n, rule=rules.KDBENCH, draws=300)
    assert found["regressed"] / found.total() >= 0.95


def test_a_busier_machine_is_no_regression_of_recorded_processes(recorded):
    condition = power.busier(recorded)
    blind = rules.kdbench_check(load=False, contended=True, value=np.median)
    for rule, low, high in ((rules.KDBENCH, 0, 0.05), (blind, 0.9, 1)):
        found = power.drawn(condition, 20, rule=rule, draws=100)
        assert low <= found["regressed"] / found.total() <= high


def test_the_study_prints_a_line_for_each_size_and_rule(recorded, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["power", "--draws", "4"])
    power.main()
    lines = capsys.readouterr().out.splitlines()
    chapters = 2 * (1 + 3 * (1 + len(power.SIZES)))
    assert len(lines) == chapters + len(power.COMPARED) * (1 + len(rules.RULES))
    assert lines[1].startswith(" A/A: 100 and 100 processes, deviations")
    assert lines[2].startswith("  n =  5: regressed ")
    assert all("in turns" in line for line in lines if line.startswith("  n ="))
