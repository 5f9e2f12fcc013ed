"""A matrix file: TOML -> `Matrix` -> ordered cells and runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from kdbench.cell import (
    Attention,
    Budget,
    Cell,
    CellRun,
    Data,
    Frozen,
    Loss,
    Method,
    Mode,
    Name,
    Precision,
    Seed,
    Side,
    Student,
    Teacher,
    Training,
)
from kdbench.document import Document, read_document, with_assignments, with_preset
from kdbench.errors import InputError, did_you_mean, quoted
from kdbench.fingerprint import fingerprint_folder
from kdbench.schema import PLAN_COLUMNS
from kdbench.validation import validated

# A sweep above this is a typing error; it is told before anything is built.
MAX_CELLS = 100_000


class _Point(Frozen):
    """Values by axis. A scalar may stand for a list of one."""

    method: tuple[Method, ...] | None = Field(default=None, strict=False)
    student: tuple[Name, ...] | None = Field(default=None, strict=False)
    image_size: tuple[Side, ...] | None = Field(default=None, strict=False)
    teacher: tuple[Name, ...] | None = Field(default=None, strict=False)
    batch_size: tuple[PositiveInt, ...] | None = Field(default=None, strict=False)
    precision: tuple[Precision, ...] | None = Field(default=None, strict=False)
    attention: tuple[Attention, ...] | None = Field(default=None, strict=False)
    loss: tuple[Loss, ...] | None = Field(default=None, strict=False)
    alpha2: tuple[float, ...] | None = Field(default=None, strict=False)
    learning_rate: tuple[float, ...] | None = Field(default=None, strict=False)

    def given(self) -> dict[str, tuple[Any, ...]]:
        """Return the axes that have values, in the order in which cells are counted through."""
        return {
            name: value
            for name in type(self).model_fields
            if (value := getattr(self, name)) is not None
        }


AXES = tuple(_Point.model_fields)
# These axes every matrix has, and every label starts with; the others refine `[training]`.
_MAIN_AXES = ("method", "student", "image_size", "teacher")


class _MatrixFile(Frozen):
    """The file's keys, as the file has them."""

    name: Name | None = None
    description: str = ""
    mode: Mode = "profile"
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)] = (0,)
    repeats: Annotated[int, Field(ge=1, le=100_000)] = 1
    threads: Annotated[int, Field(ge=1, le=65536)] | None = None
    axes: dict[str, Any]
    exclude: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] = ()
    include: Annotated[tuple[dict[str, Any], ...], Field(strict=False)] = ()
    students: dict[str, Student]
    teachers: dict[str, Teacher] = Field(default_factory=dict)
    data: Data
    training: Training = Training()
    budget: Budget = Budget()


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """What a matrix file asks for, all of it checked."""

    name: str
    path: Path
    mode: Mode
    seeds: tuple[int, ...]
    repeats: int
    threads: int | None
    budget: Budget
    cells: tuple[Cell, ...]
    only: tuple[str, ...] = ()

    def runs(self, device: str = "cpu") -> list[CellRun]:
        """List the runs in order: every cell, every seed, every repeat, less what `only` drops.

        Repeats come outermost, so that the repeats of one cell lie far apart in time and a slow
        spell of the machine does not hit all of one cell's.
        """
        runs = [
            CellRun(
                cell=cell,
                mode=self.mode,
                seed=seed,
                repeat=repeat,
                device=device,
                threads=self.threads,
                budget=self.budget,
            )
            for repeat, seed, cell in itertools.product(range(self.repeats), self.seeds, self.cells)
        ]
        for condition in self.only:
            runs = _filtered(runs, condition)
        return runs


def load_matrix(
    path: str | Path,
    *,
    preset: str | None = None,
    assignments: Sequence[str] = (),
    only: Sequence[str] = (),
) -> Matrix:
    """Load a matrix file.

    Args:
        path: the TOML file.
        preset: name of one of its presets.
        assignments: `KEY=VALUE` strings laid over file and preset (the command line's `--set`).
        only: `COLUMN=V1,V2` filters over the runs (the command line's `--only`).

    Raises:
        InputError: anything wrong with the file or these arguments, the first thing found.
    """
    where = Path(path)
    document = read_document(where)
    for name in document.get("presets") or ():
        # A mistake in a preset is told now, not on the day somebody picks it.
        _parsed(with_preset(document, name, where=where), where=where, origin=f"preset {name!r}")
    chosen = with_assignments(with_preset(document, preset, where=where), assignments)
    file = _parsed(chosen, where=where, origin=f"preset {preset!r}" if preset else None)
    matrix = Matrix(
        name=file.name or _name_from(where),
        path=where,
        mode=file.mode,
        seeds=file.seeds,
        repeats=file.repeats,
        threads=file.threads,
        budget=file.budget,
        cells=tuple(_cells(file, chosen, where)),
    )
    if not matrix.cells:
        raise InputError("no cells left: [[exclude]] drops every one", where=where, key="exclude")
    matrix = replace(matrix, only=tuple(only))
    matrix.runs()  # so that a wrong filter is told here
    return matrix


def _name_from(path: Path) -> str:
    name = path.stem
    if not name or not all(c.isalnum() or c in "._+-" for c in name) or name.startswith("."):
        raise InputError(
            f"cannot name the matrix after the file {path.name!r}",
            where=path,
            key="name",
            hint='give it a name: name = "my-matrix"',
        )
    return name


def _parsed(document: Document, *, where: Path, origin: str | None) -> _MatrixFile:
    source = f"{where} ({origin})" if origin else where
    return validated(_MatrixFile, document, where=source)


def _point(entry: Mapping[str, Any], *, where: object, key: str) -> dict[str, tuple[Any, ...]]:
    unknown = [name for name in entry if name not in AXES]
    if unknown:
        hint = did_you_mean(unknown[0], AXES) or f"the axes are {quoted(AXES)}"
        raise InputError("unknown axis", where=where, key=f"{key}.{unknown[0]}", hint=hint)
    lists = {k: v if isinstance(v, list) else [v] for k, v in entry.items()}
    for name, values in lists.items():
        if not values:
            raise InputError(
                "expected at least one value, found none", where=where, key=f"{key}.{name}"
            )
    checked = _checked_point(lists, dict(entry), where=where, key=key)
    return checked.given()


def _checked_point(
    lists: Mapping[str, Any], entry: Mapping[str, Any], *, where: object, key: str
) -> _Point:
    try:
        return validated(_Point, lists, where=where, prefix=key)
    except InputError as error:
        # Say `exclude[0].method`, not `.method[0]`, where the file has a scalar.
        text = str(error)
        for name, value in entry.items():
            if not isinstance(value, list):
                text = text.replace(f"{key}.{name}[0]", f"{key}.{name}")
        raise InputError(text) from None


def _cells(file: _MatrixFile, document: Document, where: Path) -> Iterator[Cell]:
    axes = _point(file.axes, where=where, key="axes")
    for name in ("method", "student", "image_size"):
        if name not in axes:
            raise InputError("this axis is needed, found none", where=where, key=f"axes.{name}")
    axes.setdefault("teacher", ())
    _check_names(axes, file, where, "axes")
    excluded = []
    for index, entry in enumerate(file.exclude):
        key = f"exclude[{index}]"
        excluded.append(_point(entry, where=where, key=key))
        _check_names(excluded[-1], file, where, key)
    points = [
        point
        for point in _grid(axes, where)
        if not any(_matches(point, entry) for entry in excluded)
    ]
    shown = {name for name, values in axes.items() if name not in _MAIN_AXES}
    for index, entry in enumerate(file.include):
        key = f"include[{index}]"
        values = _point(entry, where=where, key=key)
        _check_names(values, file, where, key)
        shown |= {name for name in values if name not in _MAIN_AXES}
        points.extend(_included(values, axes, where=where, key=key))
    extra = [name for name in AXES if name in shown]
    labels: dict[str, None] = {}
    for point in points:
        cell = _resolve(point, extra, file, document, where)
        if cell.label not in labels:  # methods without a teacher come once, not once per teacher
            labels[cell.label] = None
            yield cell


def _grid(axes: Mapping[str, tuple[Any, ...]], where: Path) -> Iterator[dict[str, Any]]:
    lists = {name: tuple(dict.fromkeys(values)) or (None,) for name, values in axes.items()}
    count = 1
    for values in lists.values():
        count *= len(values)
    if count > MAX_CELLS:
        raise InputError(
            f"expected at most {MAX_CELLS} cells, found {count}", where=where, key="axes"
        )
    for values in itertools.product(*lists.values()):
        yield dict(zip(lists, values, strict=True))


def _included(
    values: Mapping[str, tuple[Any, ...]],
    axes: Mapping[str, tuple[Any, ...]],
    *,
    where: Path,
    key: str,
) -> Iterator[dict[str, Any]]:
    """Complete an included cell: an axis it leaves out has the grid's value, if there is one."""
    complete = dict(values)
    for name, grid in axes.items():
        if name in complete or (name == "teacher" and not grid):
            continue
        if len(grid) != 1:
            raise InputError(
                f"expected a value for the axis {name!r}, which has several",
                where=where,
                key=f"{key}.{name}",
            )
        complete[name] = grid
    complete.setdefault("teacher", ())
    yield from _grid(complete, where)


def _matches(point: Mapping[str, Any], entry: Mapping[str, tuple[Any, ...]]) -> bool:
    return all(point.get(name) in values for name, values in entry.items())


def _check_names(
    point: Mapping[str, tuple[Any, ...]], file: _MatrixFile, where: Path, key: str
) -> None:
    tables: dict[str, dict[str, Any]] = {
        "student": dict(file.students),
        "teacher": dict(file.teachers),
    }
    for kind, table in tables.items():
        for index, name in enumerate(point.get(kind, ())):
            if name not in table:
                hint = did_you_mean(name, table) or f"the file has {quoted(table) or 'none'}"
                raise InputError(
                    f"unknown {kind} {name!r}: no [{kind}s.{name}]",
                    where=where,
                    key=f"{key}.{kind}[{index}]",
                    hint=hint,
                )


def _resolve(
    point: Mapping[str, Any],
    extra: Sequence[str],
    file: _MatrixFile,
    document: Document,
    where: Path,
) -> Cell:
    method, size = point["method"], point["image_size"]
    teacher_name = None if method == "student-only" else point["teacher"]
    if teacher_name is None and method != "student-only":
        raise InputError(
            f"the method {method!r} needs a teacher, found none", where=where, key="axes.teacher"
        )
    settings = document.get("training", {}) | {
        name: point[name] for name in extra if point.get(name) is not None
    }
    training = _with_alpha1(validated(Training, settings, where=where, prefix="training"))
    student = file.students[point["student"]]
    teacher = file.teachers[teacher_name] if teacher_name else None
    _check_shape(f"students.{point['student']}", student, size, where)
    if teacher is not None:
        _check_shape(f"teachers.{teacher_name}", teacher, teacher.image_size, where)
        _check_teacher(f"teachers.{teacher_name}", teacher, file, where)
    parts = [method, point["student"], f"{size}px", *([teacher_name] if teacher_name else [])]
    parts += [f"{name}={point[name]}" for name in extra if point.get(name) is not None]
    return Cell(
        label="/".join(parts),
        matrix=file.name or _name_from(where),
        method=method,
        student_name=point["student"],
        student=student,
        image_size=size,
        teacher_name=teacher_name,
        teacher=teacher,
        data=_data(file, where),
        training=training,
        content_digests=_content_digests(teacher, file.data),
    )


def _with_alpha1(training: Training) -> Training:
    """Resolve the loss weights; the published code's are fixed (DESIGN, Loss)."""
    if training.loss == "published-code":
        return training.model_copy(update={"alpha1": 1.0, "alpha2": 0.5})
    if training.alpha1 is None:
        return training.model_copy(update={"alpha1": 1.0 - training.alpha2})
    return training


def _check_shape(key: str, shape: Student | Teacher, image_size: int, where: Path) -> None:
    if image_size % shape.patch_size:
        near = max(1, round(image_size / shape.patch_size)) * shape.patch_size
        raise InputError(
            f"image size {image_size} is not divisible by the patch size {shape.patch_size}",
            where=where,
            key=f"{key}.patch_size",
            hint=f"the nearest that is: {near}",
        )
    if shape.width % shape.heads:
        raise InputError(
            f"width {shape.width} is not divisible by {shape.heads} heads",
            where=where,
            key=f"{key}.width",
        )


def _check_teacher(key: str, teacher: Teacher, file: _MatrixFile, where: Path) -> None:
    if teacher.weights == "pretrained" and not teacher.checkpoint:
        raise InputError(
            'weights = "pretrained" needs a hub name or a local folder, found none',
            where=where,
            key=f"{key}.checkpoint",
        )
    if teacher.weights == "fitted" and file.data.source == "synthetic":
        raise InputError(
            'weights = "fitted" needs real images, found data.source = "synthetic"',
            where=where,
            key=f"{key}.weights",
        )


def _data(file: _MatrixFile, where: Path) -> Data:
    if file.data.source == "datasets" and not file.data.path:
        raise InputError(
            'source = "datasets" needs a hub name or a local folder, found none',
            where=where,
            key="data.path",
        )
    if file.mode == "train" and file.data.source == "synthetic":
        raise InputError(
            'mode = "train" needs real images, found source = "synthetic"',
            where=where,
            key="data.source",
            hint='"digits" is bundled',
        )
    if file.data.train_images < file.training.batch_size:
        raise InputError(
            f"expected at least one batch of {file.training.batch_size} images, found "
            f"{file.data.train_images}",
            where=where,
            key="data.train_images",
        )
    return file.data


def _content_digests(teacher: Teacher | None, data: Data) -> tuple[tuple[str, str], ...]:
    """Digest what lies in local folders: their names do not say what is in them."""
    local = {"teacher": teacher.checkpoint if teacher else None, "data": data.path}
    return tuple(
        (kind, fingerprint_folder(Path(path)))
        for kind, path in local.items()
        if path and Path(path).is_dir()
    )


def _filtered(runs: list[CellRun], condition: str) -> list[CellRun]:
    column, equals, values = condition.partition("=")
    known = [c.name for c in PLAN_COLUMNS]
    if not equals:
        raise InputError(f"expected COLUMN=V1,V2, found {condition!r}", where="--only")
    if column not in known:
        raise InputError(
            f"unknown column {column!r}",
            where="--only",
            hint=did_you_mean(column, known) or f"the columns are {quoted(known)}",
        )
    wanted = values.split(",")
    kept = [run for run in runs if _shown(run.plan_row()[column]) in wanted]
    if not kept:
        there = sorted({_shown(run.plan_row()[column]) for run in runs})
        raise InputError(
            f"no cells left: no run has {column} {quoted(wanted, ' or ')}",
            where="--only",
            hint=did_you_mean(values, there) or f"there are {quoted(there[:20])}",
        )
    return kept


def _shown(value: object) -> str:
    return (
        {True: "true", False: "false", None: "null"}.get(value, str(value))
        if isinstance(value, bool | None)
        else str(value)
    )
