"""The columns of `cells` that come from the samples: energy, conditions, contention, neighbours."""

from collections.abc import Mapping, Sequence
from typing import Any

from kdbench.common.stats import median
from kdbench.runner.telemetry.contention import LIST_NS, judge_contention
from kdbench.runner.telemetry.gpu import throttle_words
from kdbench.runner.telemetry.windows import (
    MARGIN_NS,
    Counter,
    Sample,
    Span,
    Window,
    baseline,
    card_energy,
    energy_joules,
    highest,
    interval_seconds,
    padded,
    within,
    without,
)
from kdbench.spec.cell import CellRun


def condition_columns(
    run: CellRun,
    samples: Sequence[Sample],
    windows: Sequence[Window],
    *,
    threads: int | None,
    streamed: bool,
) -> dict[str, Any]:
    """Return how the machine was during the timed steps (`windows`), and whether others contended.

    `threads` is what the worker computes with (None: it did not start). If `streamed`, processes of
    its own decode the images while steps run.
    """
    # Beside a card, one thread hands out the work and the others rest.
    needed = threads if run.device == "cpu" or threads is None else 1
    if needed is not None and streamed:
        needed += run.cell.data.workers
    found = judge_contention(samples, windows, threads=needed)
    typical, longest = interval_seconds(samples)
    first = samples[0] if samples else {}
    throttled = Counter.of(samples, "cpu_throttled_seconds")
    return {
        "contended": found.contended,
        "contention": found.words,
        "cpu_elsewhere": found.cpu_elsewhere,
        "sample_seconds_median": typical,
        "sample_seconds_max": longest,
        "load_average": first.get("load_average"),
        "cpu_governor": first.get("cpu_governor"),
        "cpu_mhz_median": median(within(samples, "cpu_mhz", windows)),
        "cpu_celsius_max": highest(samples, "cpu_celsius", windows),
        "cpu_throttled_seconds": throttled.gained(windows),
        "gpu_sm_mhz_median": median(within(samples, "gpu_sm_mhz", windows)),
        "gpu_celsius_max": highest(samples, "gpu_celsius", windows),
        "gpu_throttled": _throttled(within(samples, "gpu_throttle", windows)),
        "gpu_neighbours": highest(samples, "gpu_neighbours", padded(windows, LIST_NS)),
        "device_idle_bytes": baseline(samples, "device_bytes"),
    }


def energy_columns(
    run: CellRun,
    samples: Sequence[Sample],
    spans: Sequence[Span],
    epochs: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Return the energy per step, per epoch and per training, of card and processors.

    `spans` are the timed steps of the process that was sampled; `epochs` those that a training
    finished, in whichever process.
    """
    windows = [span.window for span in spans]
    steps = sum(span.steps for span in spans)
    columns: dict[str, Any] = {}
    host = Counter.of(samples, "host_energy_joules").gained(windows)
    if host is not None:
        columns |= {"host_energy_step_joules": host / steps, "host_energy_source": "rapl"}
    meter = card_energy(samples, windows)
    joules = meter.gained(windows) if meter else None
    if meter is None or joules is None:
        return columns
    step = joules / steps
    columns |= {"energy_step_joules": step, "energy_source": meter.source}
    if epochs:
        columns["energy_epoch_joules"] = median(_by_epoch(meter, spans, epochs))
    else:
        columns["energy_epoch_joules"] = step * run.cell.steps_per_epoch
    whole = run.cell.steps_per_epoch * run.cell.training.epochs
    measured = run.mode == "train" and steps == whole
    columns["energy_training_joules"] = joules if measured else step * whole
    columns["energy_training_kind"] = "measured" if measured else "extrapolated"
    return columns


def precompute_joules(samples: Sequence[Sample], result: Mapping[str, Any]) -> float | None:
    """Return the card's energy for the whole precompute, extrapolated from the timed batches.

    `result` says when the timed and the suspended batches ran, and the `precompute_seconds` of all;
    for what an earlier run had computed it has no times.
    """
    timed, lost = (
        [(start, end) for start, end in result.get(f"precompute_{which}_ns") or ()]
        for which in ("timed", "suspended")
    )
    windows = without(timed, padded(lost, MARGIN_NS))
    seconds = sum(end - start for start, end in windows) / 1e9
    joules, _ = energy_joules(samples, windows)
    return joules * result["precompute_seconds"] / seconds if joules is not None else None


def _by_epoch(
    meter: Counter, spans: Sequence[Span], epochs: Sequence[Mapping[str, Any]]
) -> list[float]:
    """Return the energy of each epoch of which every step was sampled."""
    found = []
    for epoch in epochs:
        mine = [span for span in spans if span.epoch == epoch["epoch"]]
        if mine and sum(span.steps for span in mine) == epoch["steps"]:
            joules = meter.gained([span.window for span in mine])
            found += [] if joules is None else [joules]
    return found


def _throttled(bits: Sequence[int]) -> str | None:
    """Name each reason once; empty: read, and there was none."""
    if not bits:
        return None
    return ", ".join(dict.fromkeys(word for value in bits for word in throttle_words(value)))
