"""Samples to figures: what lies in the measured windows, and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdbench.runner.telemetry.windows import (
    Counter,
    baseline,
    energy_joules,
    highest,
    interval_seconds,
    mean_rate,
)

SECOND = 10**9


def series(column, points, scale=SECOND):
    return [{"monotonic_ns": int(at * scale), column: value} for at, value in points]


def seconds(*windows):
    return [(int(start * SECOND), int(end * SECOND)) for start, end in windows]


def test_counter_is_interpolated_at_both_ends_of_a_window():
    # 0 J/s, then 10 J/s, then 100 J/s
    samples = series("energy_joules", [(0, 5.0), (1, 5.0), (2, 15.0), (3, 115.0)])
    assert energy_joules(samples, seconds((1.5, 2.5))) == (pytest.approx(55), "nvml-counter")
    assert energy_joules(samples, seconds((1, 2))) == (pytest.approx(10), "nvml-counter")
    assert energy_joules(samples, seconds((0, 3))) == (pytest.approx(110), "nvml-counter")
    # both ends between the same two samples
    assert energy_joules(samples, seconds((2.25, 2.5))) == (pytest.approx(25), "nvml-counter")


def test_several_windows_leave_out_what_is_between_them():
    samples = series("energy_joules", [(0, 0.0), (1, 1.0), (2, 1001.0), (3, 1002.0)])
    assert energy_joules(samples, seconds((0, 1), (2, 3))) == (pytest.approx(2), "nvml-counter")


def test_power_is_integrated_by_trapezoids():
    samples = series("power_watts", [(0, 0.0), (2, 100.0), (4, 100.0), (5, 0.0)])
    assert energy_joules(samples, seconds((0, 5))) == (pytest.approx(350), "nvml-power")
    # from 50 W at 1 s to 100 W, and on to 2.5 s
    assert energy_joules(samples, seconds((1, 2.5))) == (pytest.approx(125), "nvml-power")
    # within one interval: 50 to 75 W
    assert energy_joules(samples, seconds((1, 1.5))) == (pytest.approx(31.25), "nvml-power")


def test_the_counter_is_preferred_and_power_steps_in_where_it_does_not_enclose():
    counter = series("energy_joules", [(0, 0.0), (2, 7.0)])
    power = series("power_watts", [(0, 10.0), (5, 10.0)])
    samples = sorted(counter + power, key=lambda sample: sample["monotonic_ns"])
    assert energy_joules(samples, seconds((0, 2))) == (pytest.approx(7), "nvml-counter")
    # one of two windows is not in the counter's reach: power for both, never a mixture
    assert energy_joules(samples, seconds((0, 1), (3, 4))) == (pytest.approx(20), "nvml-power")


@pytest.mark.parametrize(
    "window", [(-1, 1), (0, 3.5), (3, 4), (-2, -1)], ids=["early", "late", "after", "before"]
)
@pytest.mark.parametrize("column", ["energy_joules", "power_watts"])
def test_a_window_that_samples_do_not_enclose_has_no_energy(column, window):
    samples = series(column, [(0, 1.0), (1, 2.0), (2.5, 3.0)])
    assert energy_joules(samples, seconds(window)) == (None, None)
    assert energy_joules(samples, seconds((0, 1), window)) == (None, None)


def test_nothing_known_is_nothing_claimed():
    assert energy_joules([], seconds((0, 1))) == (None, None)
    samples = series("energy_joules", [(0, 1.0), (1, 2.0)])
    assert energy_joules(samples, []) == (None, None)
    assert energy_joules(samples[:1], seconds((0, 0))) == (None, None)
    assert energy_joules(series("energy_joules", [(0, None), (1, None)]), seconds((0, 1))) == (
        None,
        None,
    )


def test_nulls_among_the_samples_are_passed_over():
    # energy is read every 100 ms, memory every 20: most samples have none
    samples = series("energy_joules", [(0, 0.0), (0.5, None), (1, 8.0), (1.5, None), (2, 16.0)])
    samples.insert(1, {"monotonic_ns": SECOND // 10, "host_bytes": 1})
    assert energy_joules(samples, seconds((0.5, 1.5))) == (pytest.approx(8), "nvml-counter")


TIMES = st.lists(st.integers(0, 10**12), min_size=2, max_size=20, unique=True).map(sorted)


@given(TIMES, st.floats(0, 2000), st.data())
def test_constant_power_is_watts_times_seconds(times, watts, data):
    # every split of what the samples enclose into windows, ends on and between the samples
    inside = st.integers(times[0], times[-1])
    cuts = sorted(data.draw(st.lists(inside | st.sampled_from(times), min_size=2, max_size=8)))
    windows = list(zip(cuts[::2], cuts[1::2], strict=False))
    spent = sum(end - start for start, end in windows) / SECOND
    power = [{"monotonic_ns": at, "power_watts": watts} for at in times]
    joules, source = energy_joules(power, windows)
    assert joules == pytest.approx(watts * spent, rel=1e-6, abs=1e-9)
    assert source == "nvml-power"
    counter = [{"monotonic_ns": at, "energy_joules": watts * at / SECOND} for at in times]
    joules, source = energy_joules(counter, windows)
    # the counter's own resolution in floating point
    assert joules == pytest.approx(watts * spent, rel=1e-6, abs=1e-6)
    assert source == "nvml-counter"


def test_highest_looks_into_the_windows_alone():
    samples = series("host_bytes", [(0, 900), (1, 10), (2, None), (3, 30), (4, 800), (5, 20)])
    samples.append({"monotonic_ns": 5 * SECOND})
    assert highest(samples, "host_bytes", seconds((0.5, 3), (5, 6))) == 30
    assert highest(samples, "host_bytes", seconds((4, 4))) == 800, "both ends belong to a window"
    assert highest(samples, "host_bytes", seconds((1.5, 2.5))) is None
    assert highest(samples, "device_bytes", seconds((0, 6))) is None
    assert highest(samples, "host_bytes", []) is None
    assert highest([], "host_bytes", seconds((0, 6))) is None


def test_a_sampled_zero_is_a_value():
    assert highest(series("device_bytes", [(1, 0)]), "device_bytes", seconds((0, 2))) == 0


SMALL = st.integers(0, 30)


@given(
    st.lists(st.tuples(SMALL, st.none() | st.integers(-5, 5))),
    st.lists(st.tuples(SMALL, SMALL).map(sorted).map(tuple)),
)
def test_highest_for_any_windows(points, windows):
    # overlapping, nested and unordered windows, samples in any order
    samples = series("host_bytes", points, scale=1)
    values = [
        value
        for at, value in points
        if value is not None and any(start <= at <= end for start, end in windows)
    ]
    assert highest(samples, "host_bytes", windows) == max(values, default=None)


def test_a_rate_counts_by_the_time_that_it_is_of():
    # 0 in the first second, 2 in the next, 1 in the two after
    rates = [(0, None), (1, 0.0), (1.5, None), (2, 2.0), (4, 1.0)]
    samples = series("cpu_elsewhere", rates)
    for windows, mean in (
        (seconds((0, 4)), 1.0),
        (seconds((1, 2)), 2.0),
        (seconds((1.25, 1.5)), 2.0),  # between two readings
        (seconds((0.5, 1.5)), 1.0),
        (seconds((0, 1), (1.5, 2)), 2 / 3),
        (seconds((1, 2), (1.5, 2)), 2.0),  # what two windows share counts once
        (seconds((3, 9)), 1.0),  # nothing is told of what comes after the last
        (seconds((5, 9)), None),
        ([], None),
    ):
        assert mean_rate(samples, "cpu_elsewhere", windows) == (
            None if mean is None else pytest.approx(mean)
        ), windows
    assert mean_rate(series("cpu_elsewhere", [(1, 5.0)]), "cpu_elsewhere", seconds((0, 2))) is None


@given(TIMES, st.floats(0, 64), st.data())
def test_a_constant_rate_is_its_mean_in_any_windows(times, rate, data):
    inside = st.integers(times[0], times[-1])
    cuts = st.tuples(inside, inside).map(sorted).filter(lambda pair: pair[0] < pair[1])
    windows = [tuple(pair) for pair in data.draw(st.lists(cuts, min_size=1, max_size=6))]
    samples = [{"monotonic_ns": at, "cpu_elsewhere": rate} for at in times]
    assert mean_rate(samples, "cpu_elsewhere", windows) == pytest.approx(rate)


def test_intervals_are_as_achieved():
    assert interval_seconds(series("host_bytes", [(0, 1), (1, 1), (2, None), (5, 1)])) == (1, 3)
    assert interval_seconds(series("host_bytes", [(0, 1)])) == (None, None)


def test_a_counter_tells_what_it_gained_if_it_encloses_the_windows():
    counter = Counter.of(series("n", [(0, 1.0), (1, None), (2, 5.0)]), "n")
    assert counter.gained(seconds((0, 1), (1.5, 2))) == pytest.approx(3)
    assert counter.gained(seconds((0, 1), (1.5, 2.5))) is None
    assert counter.gained([]) is None


def test_baseline_is_the_first_sample():
    samples = series("device_bytes", [(0, 7), (1, 3)])
    assert baseline(samples, "device_bytes") == 7
    assert baseline(samples, "process_bytes") is None
    assert baseline([], "device_bytes") is None
