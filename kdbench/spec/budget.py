"""How much measuring a cell is worth, and how long it may take."""

from typing import Annotated, Literal

from pydantic import Field

from kdbench.common.errors import InputError
from kdbench.spec.settings import Frozen, Seconds, Share


class PhaseTimeouts(Frozen):
    """Seconds that a phase of a cell may take, before it is taken for one that hangs."""

    #: importing torch and starting the device
    start: Seconds | None = 600.0
    #: loading or downloading data and teacher, building the models
    setup: Seconds | None = 3600.0
    precompute: Seconds | None = None
    compile: Seconds | None = 3600.0
    warmup: Seconds | None = None
    measure: Seconds | None = None
    #: an epoch, or what of it is between two checkpoints
    train: Seconds | None = None
    evaluate: Seconds | None = None
    account: Seconds | None = 3600.0
    rates: Seconds | None = 600.0
    #: from one step to the next, in whichever phase
    step: Seconds | None = 1800.0


class Budget(Frozen):
    """How much measuring a cell is worth.

    Warm-up, steps and precompute are bounded in profile mode alone; checkpoints are of trainings.
    """

    #: steps before the timed ones: at least these, whatever they take...
    warmup_steps: Annotated[int, Field(ge=1, le=100_000)] = 1
    #: ...then until they are steady, or for this time
    warmup_seconds: Seconds = 10.0
    #: timed steps: at least these, whatever they take...
    min_steps: Annotated[int, Field(ge=2, le=1_000_000)] = 2
    #: ...then until the 95 % interval of their median is so narrow, as a share of it...
    interval_width: Share = 0.02
    #: ...or there are so many...
    max_steps: Annotated[int, Field(ge=2, le=1_000_000)] = 200
    #: ...or this time is spent
    measure_seconds: Seconds = 20.0
    #: the same for the batches of the precompute, after one batch to warm up
    precompute_min_batches: Annotated[int, Field(ge=1, le=1_000_000)] = 2
    precompute_seconds: Seconds = 20.0
    #: a cell that is not done by then is stopped
    timeout_seconds: Seconds = 3600.0
    #: so is one that hangs: these are the limits of each phase
    phase_timeouts: PhaseTimeouts = PhaseTimeouts()
    #: a training's checkpoints: keep its last and its best; resume: drop them once it is done;
    #: none: write none, and start anew after a stop
    checkpoints: Literal["keep", "resume", "none"] = "keep"
    #: write one after every epoch, and in a long epoch after so much time
    checkpoint_seconds: Seconds = 600.0


#: Settings of a budget that leave what is measured as it is.
NOT_MEASURED = {"timeout_seconds", "phase_timeouts", "checkpoints", "checkpoint_seconds"}


def check_steps(budget: Budget) -> None:
    """Refuse fewest steps that are more than the most: timing would end at the most."""
    least, most = budget.min_steps, budget.max_steps
    if least <= most:
        return
    if "max_steps" in budget.model_fields_set:
        problem = f"expected at least budget.min_steps, {least}, found {most}"
        raise InputError(problem, key="budget.max_steps")
    problem = f"expected at most budget.max_steps, {most} unless set, found {least}"
    raise InputError(problem, key="budget.min_steps")
