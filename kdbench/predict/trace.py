"""Traces what a training allocates, from its set-up through its first steps.

The set-up, methods and loop that are also measured run on tensors without storage
(`FakeTensorMode`), under the ledger that also accounts for a measured step.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal

import torch
from torch._subclasses import FakeTensorMode

from kdbench.predict.fake_loader import HOST, FakeLoader, first_draw
from kdbench.predict.kernels import FakeValues, card_kernels, movable_modules
from kdbench.spec.cell import CellRun
from kdbench.spec.device_profile import Profile
from kdbench.worker.probes.account import naming_mark, register_session, register_state
from kdbench.worker.probes.allocations import Event
from kdbench.worker.probes.dispatch import no_collection
from kdbench.worker.probes.ledger import Ledger
from kdbench.worker.probes.memory import Probes
from kdbench.worker.probes.work import WorkCounter
from kdbench.worker.training.session import Session, parameter_columns
from kdbench.worker.training.setup import set_up

Stage = Literal["setup", "precompute", "first", "second", "steady"]

# The first finds no gradients and no optimizer state, the second does; the third finds memory as
# every later one does.
_STEPS: tuple[Stage, ...] = ("first", "second", "steady")

# The optimizer's step counts lie on the host, unless its kernel is a fused one.
ON_HOST = "host"

# A trace takes some megabytes; cells that share one are neighbours in a matrix.
_CACHED_TRACES = 32


@dataclass(frozen=True)
class Trace:
    """All allocations and frees of a training, from before its set-up on."""

    events: list[Event]  #: in order, with each block's final category
    #: for each stage in turn, its name and the number of events before it
    stages: list[tuple[Stage, int]]
    releases: tuple[int, ...]  #: the numbers of events after which the allocator's cache is emptied
    work: WorkCounter  #: the work of the steady step
    parameters: dict[str, int | None]  #: columns of `cells`, as a measured run counts them
    #: what the precompute keeps for the training; None: there is none
    precompute_kept_bytes: int | None
    precompute_ledger_bytes: int | None  #: its peak by a CPU's ledger; None: there is none

    def windows(self) -> Iterator[tuple[Stage, int, int]]:
        """Yield each stage with its range of events: start, end."""
        ends = [start for _, start in self.stages[1:]] + [len(self.events)]
        for (stage, start), end in zip(self.stages, ends, strict=True):
            yield stage, start, end


def trace(run: CellRun, profile: Profile) -> Trace:
    """Trace a training of a cell; the run's own device is ignored."""
    run = _on_device(run, profile)
    ledger, work = Ledger(HOST), WorkCounter()
    ledger.mark("setup")
    stages: list[tuple[Stage, int]] = []
    releases: list[int] = []

    def mark(phase: str) -> None:
        if phase == "release":
            releases.append(len(ledger.events))
        else:
            stages.append(("precompute" if phase == "precompute" else "setup", len(ledger.events)))

    capacity = math.inf if profile.capacity_bytes is None else profile.capacity_bytes
    room = capacity - profile.context_bytes
    with no_collection(), ExitStack() as stack:
        # innermost first: the mode that is entered last sees an operation first
        stack.enter_context(FakeTensorMode())
        stack.enter_context(ledger)
        stack.enter_context(movable_modules())
        if profile.device == "cuda":
            stack.enter_context(card_kernels(profile))
        loader = FakeLoader(run, ledger, room=room, mark=mark)
        with FakeValues():
            session = set_up(run, loader, device=HOST, probes=Probes(HOST))
        _never_overflow(session)
        # one draw for all steps: an epoch may have a single batch, and all are alike
        draw = first_draw(session)
        register_session(session, draw, ledger)
        for stage in _STEPS:
            stages.append((stage, len(ledger.events)))
            with ExitStack() as step:
                if stage == "steady":
                    step.enter_context(work)
                step.enter_context(FakeValues())
                # held until the step's own events are complete
                kept = session.step(draw, naming_mark(session, ledger))
            register_state(session, ledger)
            ended = len(ledger.events)
            del kept
    _name_host_state(session, ledger, profile)
    made = loader.precomputed
    return Trace(
        events=ledger.events[:ended],
        stages=stages,
        releases=tuple(releases),
        work=work,
        parameters=parameter_columns(session),
        precompute_kept_bytes=None if made is None else made.embeddings.untyped_storage().nbytes(),
        precompute_ledger_bytes=None if made is None else made.cost.peak_bytes,
    )


class TraceCache:
    """Makes each trace on a device once, for all cells that allocate alike."""

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        #: the largest batch that fits, by `trace_key(any_batch=True)` and the available bytes
        self.largest: dict[tuple[str, int], int] = {}
        self._traces: OrderedDict[str, Trace] = OrderedDict()

    def get(self, run: CellRun) -> Trace:
        """Return the trace of a cell."""
        key = run.cell.trace_key()
        if key not in self._traces:
            self._traces[key] = trace(run, self.profile)
        self._traces.move_to_end(key)
        if len(self._traces) > _CACHED_TRACES:
            self._traces.popitem(last=False)
        return self._traces[key]


def with_training(run: CellRun, **settings: object) -> CellRun:
    """Copy a run with other settings of its training."""
    training = run.cell.training.model_copy(update=settings)
    return run.model_copy(update={"cell": run.cell.model_copy(update={"training": training})})


def _on_device(run: CellRun, profile: Profile) -> CellRun:
    """Resolve the settings that depend on the device."""
    training, settings = run.cell.training, {}
    if profile.device == "cuda" and training.precision == "tf32":
        settings["precision"] = "fp32"  # other arithmetic on the same float32 allocates the same
    if training.optimizer_kernels == "auto":
        settings["optimizer_kernels"] = profile.optimizer_kernels
    return with_training(run, **settings).model_copy(update={"device": "cpu"})


def _never_overflow(session: Session) -> None:
    if session.scaler is not None:
        # Fake gradients cannot say whether they overflowed: assume not, as in most steps.
        session.scaler._maybe_opt_step = lambda optimizer, _, *a, **k: optimizer.step(*a, **k)  # type: ignore[method-assign]


def _name_host_state(session: Session, ledger: Ledger, profile: Profile) -> None:
    """Mark what a GPU's training keeps on the host: the optimizer's step counts."""
    if profile.device == "cpu" or session.cell.training.optimizer_kernels == "fused":
        return
    counts = [s["step"] for s in session.optimizer.state.values() if "step" in s]
    ledger.register([c for c in counts if isinstance(c, torch.Tensor)], ON_HOST)
