"""What a method has computed before its first step: looked up, or computed and kept."""

from dataclasses import asdict, dataclass, replace
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
    DamagedError,
    Recipe,
    cached_path,
    module_digest,
    read_embeddings,
    tensor_digest,
    write_embeddings,
)
from kdbench.worker.training.embeddings import Plan, make_plan

# How often a batch is run again until it is not suspended: as few as there are, one must be timed.
_MOST_AGAIN = 100


@dataclass(frozen=True)
class Precompute:
    """Embeddings, and what they cost whenever they were computed."""

    #: float32, [classes, width] or [images, flips, width]
    embeddings: Tensor
    cost: Cost
    #: of the batches that were computed now; None: they were read from the cache
    times: BatchTimes | None


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
    """Get the embeddings that the run's method needs, on the device, and report what they cost.

    A training takes them from the cache if they are there, with what they cost when they were
    computed, and leaves them there. A profile measures the cost: it computes as much as its budget
    allows, and neither reads nor writes the cache. `machine` are the parts of the environment that
    the cost and the rounding depend on.
    """
    # A profile has no use for the recipe: it would digest a gigabyte of weights for nothing.
    recipe = recipe_of(run, data, teacher, machine) if run.mode == "train" else None
    with events.phase("precompute", probes) as phase:
        device = torch.device(run.device)
        _check_room(run.cell, data, device)
        plan = make_plan(run.cell, data, device=device, seed=run.seed)
        done = None if recipe is None else _read(cache, recipe, plan, events)
        if done is None:
            budget = run.budget if recipe is None else None
            done = compute(plan, teacher, budget=budget, probes=probes)
        times, cost = done.times, done.cost
        phase |= {"units": times.count if times else 0, "units_total": len(plan.parts)}
        if cost.peak_bytes is None:
            cost = replace(cost, peak_bytes=probes.phase_peaks()["allocated_peak_bytes"])
    if recipe is not None and times is not None:
        path = cached_path(cache, recipe)
        try:
            write_embeddings(path, recipe, done.embeddings, cost)
        except OSError as error:  # the next cell computes them again; nothing else is lost
            events.note(f"cannot keep embeddings in {path.parent}: {error}")
    events.emit(
        "result",
        precompute_seconds=cost.seconds,
        precompute_seconds_kind=cost.kind,
        precompute_timed_ns=times and times.timed,
        precompute_suspended_ns=times and times.suspended,
        precompute_kept_bytes=done.embeddings.untyped_storage().nbytes(),
        precompute_peak_bytes=cost.peak_bytes,
        precompute_key=None if recipe is None else digest(recipe),
        precompute_reused=times is None,
    )
    return done.embeddings


def compute(plan: Plan, teacher: nn.Module, *, budget: Budget | None, probes: Probes) -> Precompute:
    """Run the teacher over a plan, or over as much of it as a budget allows, and extrapolate.

    A batch that was suspended is embedded as any, and its time stands for none: the whole is then
    extrapolated from the others (DisturbedError where there are none). Off the CPU the peak is
    still to be asked for.
    """
    ledger_peak = _warm_up(plan, teacher)
    total, done = len(plan.parts), 0
    times = BatchTimes(probes.synchronize)
    for part, embedded in zip(plan.parts, plan.embed(teacher, plan.parts), strict=False):
        plan.add(part, embedded)
        done += 1
        times.end_batch()
        if budget is not None and _spent(budget, times):
            break
    plan.finish(done)
    for _ in range(_MOST_AGAIN):
        if times.count:
            break
        times.begin()
        next(plan.embed(teacher, plan.parts[:1]))
        times.end_batch()
    else:
        raise DisturbedError(
            "every batch of the precompute was suspended, or stopped and continued"
        )
    if times.count == total:
        return Precompute(plan.result, Cost(times.seconds, total, ledger_peak), times)
    seconds = times.seconds / times.count * total
    return Precompute(plan.result, Cost(seconds, total, ledger_peak, "extrapolated"), times)


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


def _spent(budget: Budget, times: BatchTimes) -> bool:
    enough = times.count >= budget.precompute_min_batches
    return enough and times.seconds >= budget.precompute_seconds


def _warm_up(plan: Plan, teacher: nn.Module) -> int | None:
    """Run one batch un-timed; on the CPU under the ledger, for the peak with all else there is."""
    device, first = plan.result.device, plan.parts[:1]
    if device.type != "cpu":
        next(plan.embed(teacher, first))
        return None
    ledger = Ledger(device)
    ledger.register_module(teacher, "teacher", prefix="teacher")
    ledger.register(plan.data.tensors(), "inputs")
    ledger.register([plan.result], "teacher")
    with ledger:
        ledger.mark("teacher")
        next(plan.embed(teacher, first))
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
    return Precompute(embeddings.to(plan.result.device), cost, None)
