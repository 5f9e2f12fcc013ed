"""Profile mode: when a cell is warm, and when enough of its steps are timed."""

import itertools
from time import monotonic
from typing import Any

from kdbench.common.stats import is_narrow, is_steady
from kdbench.spec.budget import Budget
from kdbench.worker.events import Events
from kdbench.worker.probes.suspension import DisturbedError
from kdbench.worker.training.session import Session

# A narrow interval ends the timing only then: the interval of a few steps is narrow by chance too
# often, and what is sampled from outside needs some time to see anything.
_FEWEST_FOR_NARROW = 20
_LEAST_SECONDS = 1.0
# How much longer the series is each time that its interval is looked at. Looking after every step
# and stopping at the first narrow one would pick those that are narrow by chance.
_GROWTH = 1.25
# A process that something stops and continues all the time, as cpulimit does, is never warm.
_MOST_SUSPENDED = 100


def profile(session: Session, budget: Budget, events: Events) -> None:
    """Warm up until steps are steady, then time steps until the budget is spent or enough known.

    After a step that was suspended the next are cold: it warms up again, in a phase of its own,
    and then goes on timing. Such a step decides nothing, and costs nothing of the budget.
    """
    series = _Series(session, budget, events)
    steady = series.warm_up()
    events.emit("result", warmup_settled=steady)
    while not series.measure():
        steady = _worse(steady, series.warm_up())
        events.emit("result", warmup_settled=steady)


class _Series:
    """The steps of a profile, which suspensions may part into several phases."""

    def __init__(self, session: Session, budget: Budget, events: Events) -> None:
        self._session, self._budget, self._events = session, budget, events
        self._draws = itertools.chain.from_iterable(map(session.draws, itertools.count()))
        #: how many steps each phase had so far: rows are numbered through
        self._taken = {"warmup": 0, "measure": 0}
        #: of the timed steps that count
        self._seconds: list[float] = []
        self._spent = 0.0
        self._look = max(budget.min_steps, _FEWEST_FOR_NARROW)
        #: steps that were suspended since the last one that counts
        self._suspended = 0

    def warm_up(self) -> bool | None:
        """Run steps until they are steady; return whether they are, None where that is unclear."""
        with self._events.phase("warmup", self._session.probes) as phase:
            seconds: list[float] = []
            before, started = self._taken["warmup"], monotonic()
            while True:
                scale = self._loss_scale()
                row = self._step("warmup")
                phase["units"] = self._taken["warmup"] - before
                if row["suspended"]:
                    seconds, started = [], monotonic()
                    continue
                seconds.append(row["seconds"])
                # Where fp16 overflowed, the optimizer did nothing: no step to be warm after.
                if len(seconds) < self._budget.warmup_steps or self._loss_scale() < scale:
                    continue
                steady = is_steady(seconds)
                if steady or monotonic() - started >= self._budget.warmup_seconds:
                    return steady

    def measure(self) -> bool:
        """Time steps; return whether there are enough, or else one was suspended."""
        with self._events.phase("measure", self._session.probes) as phase:
            before, started = self._taken["measure"], monotonic() - self._spent
            phase |= {"units": 0, "units_total": self._session.cell.steps_per_epoch}
            self._emit_plan()
            while not self._enough(spent := monotonic() - started):
                row = self._step("measure")
                phase["units"] = self._taken["measure"] - before
                if row["suspended"]:
                    self._spent = spent
                    return False
                self._seconds.append(row["seconds"])
                self._suspended = 0
            return True

    def _enough(self, spent: float) -> bool:
        count, budget = len(self._seconds), self._budget
        if count >= budget.max_steps:
            return True
        if count >= budget.min_steps and spent >= budget.measure_seconds:
            return True
        if count >= self._look and spent >= _LEAST_SECONDS:
            if is_narrow(self._seconds, budget.interval_width):
                return True
            self._look = round(count * _GROWTH)
        return False

    def _step(self, phase: str) -> dict[str, Any]:
        row = self._session.timed_step(next(self._draws))[0]
        self._events.emit("step", phase=phase, step=self._taken[phase], epoch=None, **row)
        self._taken[phase] += 1
        self._suspended += row["suspended"]
        if self._suspended >= _MOST_SUSPENDED:
            raise DisturbedError(
                f"{self._suspended} steps were suspended, or stopped and continued, and none "
                "between them could be timed"
            )
        return row

    def _emit_plan(self) -> None:
        """Report what is left, by the numbers that the rows will have."""
        budget, lost = self._budget, self._taken["measure"] - len(self._seconds)
        self._events.emit(
            "plan",
            seconds=budget.measure_seconds - self._spent,
            steps=budget.max_steps + lost,
            min_steps=budget.min_steps + lost,
        )

    def _loss_scale(self) -> float:
        scaler = self._session.scaler
        return scaler.get_scale() if scaler is not None else 1.0


def _worse(one: bool | None, other: bool | None) -> bool | None:
    """Both are steady, or one is not, or else one is not known."""
    return False if False in (one, other) else one and other
