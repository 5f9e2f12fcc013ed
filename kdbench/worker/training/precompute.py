"""What a method has computed before its first step: looked up, or computed and kept."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.common.errors import InputError
from kdbench.common.fingerprint import worker_digest
from kdbench.spec.budget import Budget
from kdbench.spec.cell import Cell, CellRun, digest
from kdbench.worker.data.augment import wanted_by
from kdbench.worker.data.dataset import DataSet, free_bytes
from kdbench.worker.data.images import Images
from kdbench.worker.events import Events
from kdbench.worker.probes.clock import BatchTimes
from kdbench.worker.probes.ledger import Ledger
from kdbench.worker.probes.memory import Probes
from kdbench.worker.probes.suspension import DisturbedError
from kdbench.worker.training.embedding_cache import (
    Cost,
    CostKind,
    DamagedError,
    Recipe,
    cached_path,
    module_digest,
    read_embeddings,
    tensor_digest,
    write_embeddings,
)
from kdbench.worker.training.embeddings import Plan, embed, make_plan

# How often a batch is run again until it is not suspended: as few as there are, one must be timed.
_MOST_AGAIN = 100


@dataclass(frozen=True)
class Precompute:
    """Embeddings, and what they cost.

    Attributes:
        embeddings: float32, [classes, width] or [images, flips, width].
        batches: those timed now; none where they were read from the cache.
        batches_total: those of the whole computation.
        seconds: of the whole computation, whenever it was done.
        kind: measured, or extrapolated from `batches`.
        timed: when those ran; None where they were read.
        peak_bytes: peak allocated while computing; None where it is still to be asked for.
        key: content key of the computation; None in a profile, which shares none.
        reused: they were read from the cache.
    """

    embeddings: Tensor
    batches: int
    batches_total: int
    seconds: float
    kind: CostKind
    timed: BatchTimes | None
    peak_bytes: int | None
    key: str | None
    reused: bool

    def row(self) -> dict[str, Any]:
        """Return the figures for the event that reports them."""
        return {
            "precompute_seconds": self.seconds,
            "precompute_seconds_kind": self.kind,
            "precompute_timed_ns": self.timed and self.timed.timed,
            "precompute_suspended_ns": self.timed and self.timed.suspended,
            "precompute_kept_bytes": self.embeddings.untyped_storage().nbytes(),
            "precompute_peak_bytes": self.peak_bytes,
            "precompute_key": self.key,
            "precompute_reused": self.reused,
        }


def precompute(
    run: CellRun,
    data: DataSet,
    teacher: nn.Module,
    *,
    probes: Probes,
    events: Events,
    cache: Path,
    machine: Recipe,
) -> Tensor:
    """Get the embeddings that the run's method needs, and tell what they cost.

    A training takes them from the cache if they are there, with what they cost when they were
    computed, and leaves them there. A profile measures the cost: it computes as much as its budget
    allows, and neither reads nor writes the cache.

    Args:
        run: of a method that precomputes.
        data: the images.
        teacher: maps images to embeddings [n, width].
        probes: of the run.
        events: told the phase and its figures.
        cache: folder of what is kept between runs.
        machine: the parts of the environment that the cost and the rounding depend on.

    Returns:
        float32 on the device, [classes, width] or [images, flips, width].

    Raises:
        InputError: a class has no training image, or memory does not hold the embeddings.
        DisturbedError: every batch was suspended, run again or not.
    """
    # A profile has no use for the recipe: it would digest a gigabyte of weights for nothing.
    recipe = recipe_of(run, data, teacher, machine) if run.mode == "train" else None
    with events.phase("precompute", probes) as phase:
        device = torch.device(run.device)
        _check_room(run.cell, data, device)
        plan = make_plan(run.cell, data, device=device, seed=run.seed)
        done = None if recipe is None else _read(cache, recipe, plan, events)
        if done is None:
            done = compute(
                plan,
                run.cell,
                data,
                teacher,
                budget=run.budget if recipe is None else None,
                probes=probes,
                key=None if recipe is None else digest(recipe),
            )
        phase |= {"units": done.batches, "units_total": done.batches_total}
        figures = done.row()
        if figures["precompute_peak_bytes"] is None:
            figures["precompute_peak_bytes"] = probes.phase_peaks()["allocated_peak_bytes"]
    if recipe is not None and not done.reused:
        peak = figures["precompute_peak_bytes"]
        cost = Cost(done.seconds, done.batches_total, peak, kind=done.kind)
        path = cached_path(cache, recipe)
        try:
            write_embeddings(path, recipe, done.embeddings, cost)
        except OSError as error:  # the next cell computes them again; nothing else is lost
            events.note(f"cannot keep embeddings in {path.parent}: {error}")
    events.emit("result", **figures)
    return done.embeddings


def compute(
    plan: Plan,
    cell: Cell,
    data: DataSet,
    teacher: nn.Module,
    *,
    budget: Budget | None,
    probes: Probes,
    key: str | None,
) -> Precompute:
    """Run the teacher over a plan.

    Args:
        plan: which images, and what becomes of their embeddings.
        cell: names the teacher's image size.
        data: the images.
        teacher: maps images to embeddings [n, width].
        budget: stop when it is spent and extrapolate the time; None computes all. What it did not
            reach gets random embeddings.
        probes: to synchronise the device for the clock.
        key: content key of the computation; None: nobody else will look for it.

    A batch that was suspended is embedded as any, and its time stands for none: the whole is then
    extrapolated from the others.

    Raises:
        DisturbedError: there are no others.
    """
    size = cell.required_teacher.image_size
    ledger_peak = _warm_up(plan, data, teacher, size)
    total, done = len(plan.passes), 0
    times = BatchTimes(probes.synchronize)
    for part, embedded in zip(
        plan.passes, embed(data, teacher, plan.passes, image_size=size), strict=False
    ):
        plan.add(part, embedded)
        done += 1
        times.end_batch()
        if budget is not None and _spent(budget, times.count, times.seconds):
            break
    plan.finish(done)
    _time_one(times, lambda: next(embed(data, teacher, plan.passes[:1], image_size=size)))
    whole = times.count == total
    return Precompute(
        embeddings=plan.result,
        batches=times.count,
        batches_total=total,
        seconds=times.seconds if whole else times.seconds / times.count * total,
        kind="measured" if whole else "extrapolated",
        timed=times,
        peak_bytes=ledger_peak,
        key=key,
        reused=False,
    )


def recipe_of(run: CellRun, data: DataSet, teacher: nn.Module, machine: Recipe) -> dict[str, Any]:
    """Collect all that the embeddings, their rounding and their cost depend on: JSON values."""
    cell, training = run.cell, run.cell.training
    kind = cell.method_spec.teacher
    chosen = (
        {"images_per_class": training.images_per_class, "seed": run.seed}
        if kind == "class-embeddings"
        else {"flip": cell.data.flip}
    )
    return {
        "kind": kind,
        **chosen,
        "classes": cell.data.classes,
        "batch_size": training.precompute_batch_size,
        "teacher": cell.required_teacher.model_dump(
            include={"patch_size", "width", "depth", "heads", "image_size"}
        ),
        "teacher_weights": module_digest(teacher),
        "teacher_pixels": asdict(wanted_by(teacher)),
        "data": _data_identity(cell, data),
        "code": worker_digest(),
        "device": torch.device(run.device).type,
        "threads": torch.get_num_threads(),
        "machine": dict(machine),
    }


def _check_room(cell: Cell, data: DataSet, device: torch.device) -> None:
    """Refuse embeddings of images that the device's free memory does not hold."""
    if cell.method_spec.teacher != "image-embeddings":
        return
    flips = 2 if cell.data.flip else 1
    needed = 4 * data.train_count * flips * cell.required_teacher.width
    free = free_bytes(device)
    if needed > free:
        raise InputError(
            f"the embeddings of {data.train_count:,} images need {needed:,} bytes, found {free:,} "
            f"free on {device}",
            key="axes.method",
            hint="teacher-kd keeps none, embed-kd one per class",
        )


def _spent(budget: Budget, batches: int, seconds: float) -> bool:
    return batches >= budget.precompute_min_batches and seconds >= budget.precompute_seconds


def _time_one(times: BatchTimes, again: Callable[[], object]) -> None:
    """Where all batches were suspended, run the first again until it was timed."""
    for _ in range(_MOST_AGAIN):
        if times.count:
            return
        times.begin()
        again()
        times.end_batch()
    raise DisturbedError("every batch of the precompute was suspended, or stopped and continued")


def _warm_up(plan: Plan, data: DataSet, teacher: nn.Module, size: int) -> int | None:
    """Run one batch un-timed; on the CPU under the ledger, which tells the peak beside all else."""
    device, first = plan.result.device, plan.passes[:1]
    if device.type != "cpu":
        next(embed(data, teacher, first, image_size=size))
        return None
    ledger = Ledger(device)
    ledger.register_module(teacher, "teacher", prefix="teacher")
    ledger.register(data.tensors(), "inputs")
    ledger.register([plan.result], "teacher")
    with ledger:
        ledger.mark("teacher")
        next(embed(data, teacher, first, image_size=size))
    return ledger.peak_bytes()


def _data_identity(cell: Cell, data: DataSet) -> Any:  # JSON
    """Digest the pixels; of streamed images what names them, since reading all takes long."""
    if isinstance(data.train, Images):
        return [data.train_count, tensor_digest(data.train)]
    return [
        cell.data.model_dump(mode="json", exclude={"name", "storage", "workers", "flip", "crop"}),
        [list(pair) for pair in cell.content_digests if pair[0] == "data"],
        tensor_digest([data.train.labels]),
    ]


def _read(cache: Path, recipe: Recipe, plan: Plan, events: Events) -> Precompute | None:
    path = cached_path(cache, recipe)
    try:
        found = read_embeddings(path, recipe, tuple(plan.result.shape))
    except DamagedError as problem:
        events.note(f"kept embeddings are computed anew, {path}: {problem}")
        return None
    if found is None:
        return None
    embeddings, cost = found
    return Precompute(
        embeddings=embeddings.to(plan.result.device),
        batches=0,
        batches_total=len(plan.passes),
        seconds=cost.seconds,
        kind=cost.kind,
        timed=None,
        peak_bytes=cost.peak_bytes,
        key=digest(recipe),
        reused=True,
    )
