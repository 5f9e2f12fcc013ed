"""From what a matrix file says to the cells that it means."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from kdbench.common.document import Document
from kdbench.common.errors import InputError, did_you_mean, quoted, short_repr
from kdbench.common.validation import dotted_key, validate
from kdbench.matrix.contents import content_digests
from kdbench.matrix.data_path import check_data_path
from kdbench.matrix.grid import (
    AXES,
    MAIN_AXES,
    MAX_CELLS,
    MAX_ENTRIES,
    Point,
    Values,
    grid,
    included,
    matches,
    parse_values,
)
from kdbench.matrix.sizes import check_embedded, check_size
from kdbench.spec.budget import Budget
from kdbench.spec.cell import Cell, Launch, Mode
from kdbench.spec.method import Method, find_method, known_methods, suggest_methods
from kdbench.spec.pretrained.local import read_local_teacher
from kdbench.spec.settings import Data, Frozen, Name, Seed, Student, Teacher, Training

Entries = Annotated[tuple[dict[str, Any], ...], Field(strict=False, max_length=MAX_ENTRIES)]


class MatrixFile(Frozen):
    """The file's keys, as the file has them."""

    name: Name | None = None
    description: str = ""
    mode: Mode = "profile"
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)] = (0,)
    repeats: Annotated[int, Field(ge=1, le=100_000)] = 1
    threads: Annotated[int, Field(ge=1, le=65536)] | None = None
    launch: Launch = "spawn"
    axes: dict[str, Any]
    exclude: Entries = ()
    include: Entries = ()
    students: dict[Name, Student]
    teachers: dict[Name, Teacher] = Field(default_factory=dict)
    data: Data
    training: Training = Training()
    budget: Budget = Budget()
    #: figure to how far `kdbench check` lets it grow
    tolerances: dict[str, Any] = Field(default_factory=dict)

    @field_validator("seeds")
    @classmethod
    def _different(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        # The second run of a seed would take the place of the first: `repeats` is for more of one.
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"expected different seeds, found {short_repr(list(seeds))}")
        return seeds


def resolve_cells(matrix: str, file: MatrixFile, document: Document, where: Path) -> Iterator[Cell]:
    """Make the cells in order: the grid, less what is excluded, then what is included.

    `document` is the file as written, for settings that an axis refines. Raises InputError if keys
    do not fit together.
    """
    axes = parse_values(file.axes, where=where, key="axes")
    for name in ("method", "student", "image_size"):
        if name not in axes:
            raise InputError("this axis is needed, found none", where=where, key=f"axes.{name}")
    axes.setdefault("teacher", ())
    _check_names(axes, file.axes, file, where, "axes")
    check_data_path(file.data, where)
    excluded = []
    for index, entry in enumerate(file.exclude):
        key = f"exclude[{index}]"
        excluded.append(parse_values(entry, where=where, key=key))
        _check_names(excluded[-1], entry, file, where, key)
    points = [
        point for point in grid(axes, where) if not any(matches(point, entry) for entry in excluded)
    ]
    shown = {name for name, values in axes.items() if name not in MAIN_AXES}
    for index, entry in enumerate(file.include):
        key = f"include[{index}]"
        values = parse_values(entry, where=where, key=key)
        _check_names(values, entry, file, where, key)
        shown |= {name for name in values if name not in MAIN_AXES}
        points.extend(included(values, axes, where=where, key=key))
        if len(points) > MAX_CELLS:
            problem = f"expected at most {MAX_CELLS} cells, found more"
            raise InputError(problem, where=where, key=key)
    extra = [name for name in AXES if name in shown]
    labels: dict[str, None] = {}
    checked: set[tuple[str | None, bool]] = set()
    for point in points:
        cell = _resolve(matrix, point, extra, file, document, where)
        if cell.label not in labels:  # methods without a teacher come once, not once per teacher
            labels[cell.label] = None
            _check_checkpoint(cell, checked, where)
            yield cell


def _check_names(
    point: Values, written: Mapping[str, Any], file: MatrixFile, where: Path, key: str
) -> None:
    for index, name in enumerate(point.get("method", ())):
        if name not in known_methods():
            raise InputError(
                f"unknown method {name!r}",
                where=where,
                key=f"{key}.{dotted_key(['method', index], written)}",
                hint=suggest_methods(name),
            )
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
                    key=f"{key}.{dotted_key([kind, index], written)}",
                    hint=hint,
                )


def _resolve(
    matrix: str,
    point: Point,
    extra: Sequence[str],
    file: MatrixFile,
    document: Document,
    where: Path,
) -> Cell:
    method, size = point["method"], point["image_size"]
    declared = find_method(method)
    teacher_name = point["teacher"] if declared.has_teacher else None
    if teacher_name is None and declared.has_teacher:
        raise InputError(
            f"the method {method!r} needs a teacher, found none", where=where, key="axes.teacher"
        )
    settings = document.get("training", {}) | {
        name: point[name] for name in extra if point.get(name) is not None
    }
    training = validate(Training, settings, where=where, prefix="training")
    student = file.students[point["student"]]
    teacher = file.teachers[teacher_name] if teacher_name else None
    classes = file.data.classes
    _check_shape(f"students.{point['student']}", student, size, where)
    check_size(f"students.{point['student']}", student, size, classes, where)
    if teacher is not None:
        _check_shape(f"teachers.{teacher_name}", teacher, teacher.image_size, where)
        check_size(f"teachers.{teacher_name}", teacher, teacher.image_size, classes, where)
        _check_teacher(f"teachers.{teacher_name}", teacher, file, where)
    if declared.teacher == "image-embeddings" and file.data.crop is not None:
        raise InputError(
            f"the method {method!r} keeps one embedding of each image, found random crops",
            where=where,
            key="data.crop",
            hint="a crop of its own in each epoch needs a teacher in each step: teacher-kd",
        )
    parts = [method, point["student"], f"{size}px", *([teacher_name] if teacher_name else [])]
    parts += [f"{name}={_shown(point[name])}" for name in extra if point.get(name) is not None]
    return Cell(
        label="/".join(parts),
        matrix=matrix,
        method=method,
        student_name=point["student"],
        student=student,
        image_size=size,
        teacher_name=teacher_name,
        teacher=teacher,
        data=_data(file, training, where),
        training=_with_loss_weights(training, declared),
        content_digests=content_digests(method, teacher_name, teacher, file.data, where),
    )


def _shown(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)  # as TOML writes it


def _with_loss_weights(training: Training, declared: Method) -> Training:
    """Resolve the weights of the losses; the published code's are fixed (DESIGN, Loss)."""
    alpha1, alpha2 = training.alpha1, training.alpha2
    if training.loss == "published-code":
        alpha1, alpha2 = 1.0, 0.5
    elif alpha1 is None:
        alpha1 = 1.0 - alpha2
    if not declared.has_teacher:  # it has one loss, which nothing weighs against
        alpha1, alpha2 = 1.0, 0.0
    return training.model_copy(update={"alpha1": alpha1, "alpha2": alpha2})


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


def _check_teacher(key: str, teacher: Teacher, file: MatrixFile, where: Path) -> None:
    if teacher.weights == "pretrained" and not teacher.checkpoint:
        raise InputError(
            'weights = "pretrained" needs a hub name or a local folder, found none',
            where=where,
            key=f"{key}.checkpoint",
        )
    if teacher.weights == "pretrained" and _is_missing_path(str(teacher.checkpoint)):
        raise InputError(
            "expected a hub name or a local folder, found no folder "
            f"{short_repr(teacher.checkpoint)}",
            where=where,
            key=f"{key}.checkpoint",
            hint="a path is relative to the folder that kdbench is started in",
        )
    if teacher.weights == "fitted" and file.data.source == "synthetic":
        raise InputError(
            'weights = "fitted" needs real images, found data.source = "synthetic"',
            where=where,
            key=f"{key}.weights",
        )


def _check_checkpoint(cell: Cell, checked: set[tuple[str | None, bool]], where: Path) -> None:
    """Refuse a local checkpoint that no run could use: once, and before anything is started."""
    of = (cell.teacher_name, cell.method_spec.classifier)
    if cell.teacher is None or of in checked:
        return
    try:
        read_local_teacher(cell)
    except InputError as error:
        raise error if error.where is not None else error.at(where) from None
    checked.add(of)


def _data(file: MatrixFile, training: Training, where: Path) -> Data:
    if file.data.source == "datasets" and not file.data.path:
        raise InputError(
            'source = "datasets" needs a hub name, a local folder or a .parquet file, found none',
            where=where,
            key="data.path",
        )
    if file.data.source != "datasets" and file.data.storage == "stream":
        raise InputError(
            f'storage = "stream" needs source = "datasets", found {file.data.source!r}',
            where=where,
            key="data.storage",
            hint="what kdbench makes itself is in memory already",
        )
    if file.mode == "train" and file.data.source == "synthetic":
        raise InputError(
            'mode = "train" needs real images, found source = "synthetic"',
            where=where,
            key="data.source",
            hint='"digits" is bundled',
        )
    if file.data.train_images < training.batch_size:
        raise InputError(
            f"expected at least one batch of {training.batch_size} images, found "
            f"{file.data.train_images}",
            where=where,
            key="data.train_images",
        )
    check_embedded(file.data, training, where)
    return file.data


def _is_missing_path(name: str) -> bool:
    """Whether a name is written as a path, and nothing is there; hub names are `owner/name`."""
    written_as_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    return written_as_path and not Path(name).exists()
