"""Profile mode: when a cell is warm, and when enough of its steps are timed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from time import monotonic

from kdbench.cell import Budget
from kdbench.stats import is_narrow, is_settled
from kdbench.worker.augment import Draw
from kdbench.worker.events import Events
from kdbench.worker.train import emit_step
from kdbench.worker.training import Session

# A narrow interval ends the timing only then: the interval of a few steps is narrow by chance too
# often, and what is sampled from outside needs some time to see anything.
_FEWEST_FOR_NARROW = 20
_LEAST_SECONDS = 1.0
# How much longer the series is each time that its interval is looked at. Looking after every step
# and stopping at the first narrow one would pick those that are narrow by chance.
_GROWTH = 1.25


def profile(session: Session, budget: Budget, events: Events) -> None:
    """Warm up until steps are steady, then time steps until the budget is spent or enough known.

    Args:
        session: the training, set up.
        budget: what this may cost.
        events: is told every step; and, as a result, whether the warm-up settled: None where it
            was too short to tell.
    """
    draws = itertools.chain.from_iterable(session.draws(epoch) for epoch in itertools.count())
    with events.phase("warmup", session.probes) as phase:
        phase["units"], settled = _warm_up(session, budget, events, draws)
    events.emit("result", warmup_settled=settled)
    with events.phase("measure", session.probes) as phase:
        phase["units"] = _measure(session, budget, events, draws)
        phase["units_total"] = session.cell.steps_per_epoch


def _warm_up(
    session: Session, budget: Budget, events: Events, draws: Iterator[Draw]
) -> tuple[int, bool | None]:
    """Run steps until they are steady; returns how many, and whether they are."""
    seconds: list[float] = []
    started = monotonic()
    while True:
        scale = _loss_scale(session)
        row = session.timed_step(next(draws))[0]
        emit_step(events, row, "warmup", len(seconds))
        seconds.append(row["seconds"])
        # Where fp16 overflowed, the optimizer did nothing: that is no step to be warm after.
        if len(seconds) < budget.warmup_steps or _loss_scale(session) < scale:
            continue
        settled = is_settled(seconds)
        if settled or monotonic() - started >= budget.warmup_seconds:
            return len(seconds), settled


def _measure(session: Session, budget: Budget, events: Events, draws: Iterator[Draw]) -> int:
    """Time steps; returns how many."""
    events.emit(
        "plan", seconds=budget.measure_seconds, steps=budget.max_steps, min_steps=budget.min_steps
    )
    seconds: list[float] = []
    started, look = monotonic(), max(budget.min_steps, _FEWEST_FOR_NARROW)
    while len(seconds) < budget.max_steps:
        spent = monotonic() - started
        if len(seconds) >= budget.min_steps and spent >= budget.measure_seconds:
            break
        if len(seconds) >= look and spent >= _LEAST_SECONDS:
            if is_narrow(seconds, budget.interval_width):
                break
            look = round(len(seconds) * _GROWTH)
        row = session.timed_step(next(draws))[0]
        emit_step(events, row, "measure", len(seconds))
        seconds.append(row["seconds"])
    return len(seconds)


def _loss_scale(session: Session) -> float:
    return session.scaler.get_scale() if session.scaler is not None else 1.0
