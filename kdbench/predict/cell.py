"""A cell's prediction: the columns and rows of a measured run that a trace can predict."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdbench.common.errors import InputError
from kdbench.predict.replay import Replay, replay
from kdbench.predict.trace import Stage, Trace, TraceCache
from kdbench.spec.cell import CellRun
from kdbench.spec.device_profile import Profile
from kdbench.spec.method import BUILT_IN
from kdbench.spec.pretrained.local import read_local_teacher

# The stages whose peak is split by category and module.
_SPLIT: tuple[Stage, ...] = ("precompute", "first", "steady")
# The stages that a measured run has as phases.
_PHASES: Mapping[Stage, str] = {"setup": "setup", "precompute": "precompute", "steady": "measure"}


@dataclass(frozen=True)
class Prediction:
    """What a cell needs: columns of `cells` and `timeline`, rows of `memory` and `phases`."""

    columns: dict[str, Any]
    memory: list[dict[str, Any]]
    phases: list[dict[str, Any]]
    timeline: dict[str, Any]


def predict(run: CellRun, profile: Profile, traces: TraceCache | None = None) -> Prediction:
    """Predict what a cell needs on a device, with traces that it may share with other cells.

    Raises InputError if such a cell cannot be predicted.
    """
    if run.cell.training.compile:
        raise InputError(
            "a compiled student cannot be predicted: no trace sees into it",
            key="training.compile",
            hint="predict it uncompiled (--set training.compile=false), or measure it",
        )
    traced = (traces or TraceCache(profile)).get(run)
    replayed = replay(traced, profile)
    return Prediction(
        columns=_columns(run, profile, traced, replayed),
        memory=[
            {"stage": stage, **share.row()}
            for stage in _SPLIT
            if stage in replayed.peaks
            for share in replayed.peaks[stage].shares
        ],
        phases=[
            {
                "phase": phase,
                "attempt": 0,
                "started_ns": 0,
                "allocated_peak_bytes": replayed.peaks[stage].allocated,
                "reserved_peak_bytes": replayed.peaks[stage].reserved,
            }
            for stage, phase in _PHASES.items()
            if stage in replayed.peaks
        ],
        timeline=dict(replayed.timeline),
    )


def _caveats(run: CellRun, profile: Profile) -> Iterator[str]:
    """Yield the respects in which a cell's prediction is unverified."""
    training = run.cell.training
    teacher = run.cell.teacher
    if not profile.verified:
        yield f"no prediction for {profile.title} was held against such a card yet"
    if profile.device == "cuda":
        yield "the scratch memory of convolutions and of large sums is not in it"
        if training.attention == "sdpa":
            yield "nor is that of fused attention's backward"
        if training.precision in ("bf16", "fp16"):
            yield "autocast's casts are those that torch documents, not observed ones"
    if teacher and teacher.weights == "pretrained" and not read_local_teacher(run.cell):
        folder = Path(str(teacher.checkpoint)).parent
        if folder != Path() and folder.is_dir():
            # A path with a mistake in it looks like a name on the hub.
            yield f"there is no {teacher.checkpoint} here: taken for a name on the hub"
        yield "the checkpoint is on the hub and was not read: its shape is the matrix file's"
        if not teacher.has_full_preprocessing:
            yield "what it says of its pixels is taken to be what the matrix file says or CLIP's"
    if run.cell.method not in BUILT_IN:
        yield "its method is a plug-in's"


def _preprocessing(run: CellRun) -> dict[str, str]:
    teacher = run.cell.teacher
    if teacher is None or (local := read_local_teacher(run.cell)) is None:
        return {}
    return {
        "teacher_preprocessing": local.preprocessing.summary(teacher.image_size),
        "teacher_preprocessing_source": local.preprocessing.source,
    }


def _columns(run: CellRun, profile: Profile, traced: Trace, replayed: Replay) -> dict[str, Any]:
    steady, first = replayed.peaks["steady"], replayed.peaks["first"]
    on_card = profile.device == "cuda"
    precompute = replayed.peaks.get("precompute")
    computed = precompute and precompute.allocated
    return {
        **_preprocessing(run),
        "allocated_peak_bytes": steady.allocated,
        "allocated_source": "simulation" if on_card else "trace",
        "reserved_peak_bytes": steady.reserved,
        "first_allocated_peak_bytes": first.allocated,
        "first_reserved_peak_bytes": first.reserved,
        **traced.parameters,
        # a CPU's ledger counts only the teacher and its batch, and so does its prediction
        "precompute_peak_bytes": computed if on_card else traced.precompute_ledger_bytes,
        "precompute_kept_bytes": traced.precompute_kept_bytes,
        "flops_step": traced.work.flops,
        "operations_step": traced.work.operations,
        "bytes_moved_step": traced.work.bytes_moved,
        "caveats": "; ".join(_caveats(run, profile)) or None,
    }
