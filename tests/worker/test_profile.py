"""When a profile is warm and when it has timed enough, on series that are told."""

import itertools
import json
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdbench.spec.budget import Budget
from kdbench.worker import profile as profile_module
from kdbench.worker.events import Events
from kdbench.worker.probes.suspension import DisturbedError
from kdbench.worker.profile import profile


class Suspended(float):
    """Seconds of a step that the machine was suspended in."""


class Probes:
    def start_phase(self):
        pass

    def synchronize(self):
        pass

    def phase_peaks(self):
        return {}


@pytest.fixture
def profiled(tmp_path, monkeypatch):
    """Call with the seconds of the steps, which go on with the last; returns what was told."""

    def run(*seconds, cycle=None, scales=(), **budget):
        (tmp_path / "events").unlink(missing_ok=True)
        clock = [0.0]
        series = itertools.chain(seconds, itertools.cycle(cycle or seconds[-1:]))
        scale = itertools.chain(scales, itertools.repeat(1.0))
        monkeypatch.setattr(profile_module, "monotonic", lambda: clock[0])

        def timed_step(_draw):
            took = next(series)
            clock[0] += took
            scaler.scale = next(scale)
            return {"seconds": took, "suspended": isinstance(took, Suspended)}, None, None

        scaler = SimpleNamespace(scale=2.0**16)
        scaler.get_scale = lambda: scaler.scale
        session = SimpleNamespace(
            draws=lambda epoch: iter(range(3)),
            timed_step=timed_step,
            scaler=scaler if scales else None,
            probes=Probes(),
            cell=SimpleNamespace(steps_per_epoch=7),
        )
        profile(session, Budget(**budget), Events(tmp_path / "events"))
        lines = (tmp_path / "events").read_text().splitlines()
        told = [json.loads(line) for line in lines]
        steps = [event for event in told if event["event"] == "step"]
        return SimpleNamespace(
            warm=[step["seconds"] for step in steps if step["phase"] == "warmup"],
            measured=[step["seconds"] for step in steps if step["phase"] == "measure"],
            clean=[
                step["seconds"]
                for step in steps
                if step["phase"] == "measure" and not step["suspended"]
            ],
            numbers={
                name: [step["step"] for step in steps if step["phase"] == name]
                for name in ("warmup", "measure")
            },
            settled=[e["warmup_settled"] for e in told if "warmup_settled" in e][-1],
            phases={e["phase"]: e for e in told if e["event"] == "phase"},
            units=[(e["phase"], e["units"]) for e in told if e["event"] == "phase"],
            plans=[e for e in told if e["event"] == "plan"],
        )

    return run


def test_warming_up_ends_when_the_steps_are_steady(profiled):
    told = profiled(9.0, 5.0, 3.0, 2.0, 1.5, 1.2, 1.1, 1.05, 1.0, warmup_seconds=1000)
    assert told.settled is True
    assert told.warm[-5:] == [1.0] * 5
    assert 12 <= len(told.warm) <= 20
    assert told.phases["warmup"]["units"] == len(told.warm)
    assert set(told.measured) == {1.0}


def test_steady_steps_need_ten_to_be_known_as_such(profiled):
    assert len(profiled(0.01).warm) == 10


def test_warming_up_ends_with_its_time(profiled):
    told = profiled(4.0, 3.9, 3.0, 2.0, 1.0, warmup_seconds=10.0)
    assert told.warm == [4.0, 3.9, 3.0]
    assert told.settled is None, "three steps cannot tell"
    falling = [20 * 0.8**n for n in range(40)]
    told = profiled(*falling, warmup_seconds=95.0)
    assert told.settled is False
    assert 13 <= len(told.warm) <= 15


def test_warming_up_has_at_least_the_steps_asked_for(profiled):
    assert len(profiled(100.0, warmup_steps=3, warmup_seconds=1.0).warm) == 3
    assert len(profiled(0.1, warmup_steps=25).warm) == 25


def test_a_step_that_fp16_skipped_is_none_to_be_warm_after(profiled):
    scales = [2.0**16] * 8 + [2.0**15, 2.0**14, 2.0**14]
    told = profiled(0.1, scales=scales)
    assert len(told.warm) == 11


def test_timing_ends_when_the_interval_is_narrow(profiled):
    quiet = profiled(0.1, measure_seconds=1000.0, max_steps=10_000)
    assert len(quiet.measured) == 20, "the fewest, in two seconds"
    noisy = [1.0, 1.1, 0.9, 1.05, 0.95, 1.02, 0.98]
    counts = {
        width: len(
            profiled(
                *[1.0] * 10,
                cycle=noisy,
                measure_seconds=1e6,
                max_steps=10_000,
                interval_width=width,
            ).measured
        )
        for width in (0.2, 0.05, 0.02)
    }
    assert counts[0.2] == 20 < counts[0.05] < counts[0.02] < 1000
    wide = profiled(0.1)
    assert wide.phases["measure"] | {"units_total": 7} == wide.phases["measure"]


def test_timing_goes_on_for_a_second(profiled):
    told = profiled(0.001, max_steps=100_000)
    assert 1000 <= len(told.measured) < 1300


def test_timing_ends_with_its_steps_or_its_time(profiled):
    noisy = [1.0, 3.0, 2.0]
    assert len(profiled(1.0, cycle=noisy, max_steps=12, measure_seconds=1e6).measured) == 12
    told = profiled(*[1.0] * 10, cycle=noisy, measure_seconds=30.0)
    assert 30 <= sum(told.measured) <= 33
    assert len(profiled(50.0, min_steps=4, measure_seconds=1.0).measured) == 4


def test_after_a_suspension_it_warms_up_again_and_goes_on(profiled):
    cold = [3.0, 2.0]
    told = profiled(
        *[*[1.0] * 10, 1.0, 1.0, 1.0, Suspended(3600), *cold, 1.0],
        max_steps=12,
        measure_seconds=50.0,
        warmup_seconds=1000.0,
    )
    assert told.clean == [1.0] * 12, "neither the step nor the cold ones behind it"
    assert told.measured[3] == 3600
    assert told.warm[10:12] == cold
    (_, first), before, (_, again), after = told.units
    assert [name for name, _ in told.units] == ["warmup", "measure"] * 2
    assert (first, before, after) == (10, ("measure", 4), ("measure", 9))
    assert again >= 10
    # rows are numbered through, and the plan is of those numbers
    assert told.numbers == {"warmup": list(range(10 + again)), "measure": list(range(13))}
    assert [(plan["steps"], plan["seconds"]) for plan in told.plans] == [(12, 50.0), (13, 47.0)]


def test_a_suspension_spends_nothing_of_the_budget(profiled):
    budget = {"measure_seconds": 30.0, "max_steps": 1000, "interval_width": 1e-9}
    noisy = [1.0, 3.0, 2.0]
    told = profiled(*[1.0] * 10, Suspended(3600), *[1.0] * 10, cycle=noisy, **budget)
    assert 30 <= sum(told.clean) <= 33


def test_a_suspension_in_the_warm_up_begins_it_anew(profiled):
    told = profiled(*[1.0] * 7, Suspended(3600), 3.0, 2.0, 1.0, warmup_seconds=100.0)
    assert told.units[0][0] == "warmup"
    assert told.units[0][1] >= 8 + 10
    assert [name for name, _ in told.units] == ["warmup", "measure"]
    assert told.settled is True
    assert set(told.measured) == {1.0}


def test_a_warm_up_that_did_not_settle_is_remembered(profiled):
    falling = [20 * 0.8**n for n in range(14)]
    told = profiled(*falling, Suspended(9), 1.0, warmup_seconds=sum(falling) - 1)
    assert told.settled is False, "the steps before the suspension were not steady"


def test_who_is_stopped_all_the_time_is_not_measured(profiled):
    with pytest.raises(DisturbedError, match="100 steps were suspended, or stopped and continued"):
        profiled(1.0, Suspended(1), cycle=[1.0, Suspended(1)], warmup_seconds=1000.0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(places=st.sets(st.integers(0, 80), max_size=12), count=st.integers(2, 15))
def test_wherever_suspensions_are_as_many_steps_are_timed(profiled, places, count):
    series = [Suspended(500) if n in places else 1.0 for n in range(81)]
    # The last one is what all later steps are.
    told = profiled(*series, 1.0, max_steps=count, min_steps=count, warmup_seconds=1000.0)
    assert told.clean == [1.0] * count
    assert told.settled is True
    for (name, units), (after, _) in zip(told.units, told.units[1:], strict=False):
        assert {name, after} == {"warmup", "measure"}
        assert units >= 10 or name == "measure", "whole again each time"
    assert sum(units for _, units in told.units) == len(told.warm) + len(told.measured)
