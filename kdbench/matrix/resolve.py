"""From what a matrix file says to the cells that it means."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from kdbench.common.document import Document
from kdbench.common.errors import InputError, did_you_mean, os_reason, quoted, short_repr
from kdbench.common.fingerprint import fingerprint_module, fingerprint_path
from kdbench.common.validation import dotted_key, validate
from kdbench.matrix import grid
from kdbench.matrix.checks import check_data, check_shape, check_weights_source
from kdbench.matrix.data_path import check_data_path
from kdbench.matrix.filter import written
from kdbench.spec.budget import Budget
from kdbench.spec.cell import Cell, Launch, Mode
from kdbench.spec.method import find_method, known_methods, plugin_module, suggest_methods
from kdbench.spec.pretrained.local import read_local_teacher
from kdbench.spec.settings import Data, Frozen, Name, Seed, Student, Teacher, Training

Entries = Annotated[tuple[dict[str, Any], ...], Field(strict=False, max_length=grid.MAX_ENTRIES)]


class MatrixFile(Frozen):
    """The file's keys, as the file has them."""

    #: the folder of its results, and the name in tables; unset: the name of the file
    name: Name | None = None
    #: what the matrix is for, in a sentence
    description: str = ""
    #: profile: time some steps; train: train all epochs and evaluate
    mode: Mode = "profile"
    #: each cell runs once for each seed
    seeds: Annotated[tuple[Seed, ...], Field(strict=False, min_length=1)] = (0,)
    #: each seed runs so often, each time in a process of its own
    repeats: Annotated[int, Field(ge=1, le=100_000)] = 1
    #: threads of a training; unset: torch's own choice
    threads: Annotated[int, Field(ge=1, le=65536)] | None = None
    #: spawn: a fresh process for each cell; fork: from a warm process (Linux)
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


def resolve_cells(matrix: str, file: MatrixFile, document: Document) -> Iterator[Cell]:
    """Make the cells in order: the grid, less what is excluded, then what is included.

    `document` is the file as written, for settings that an axis refines. Raises InputError if keys
    do not fit together.
    """
    axes = _axis_values(file.axes, file, "axes")
    for name in ("method", "student", "image_size"):
        if name not in axes:
            raise InputError("this axis is needed, found none", key=f"axes.{name}")
    axes.setdefault("teacher", ())
    check_data_path(file.data)
    excluded = [
        _axis_values(entry, file, f"exclude[{index}]") for index, entry in enumerate(file.exclude)
    ]
    points = [p for p in grid.points(axes) if not any(grid.matches(p, entry) for entry in excluded)]
    named = set(axes)
    for index, entry in enumerate(file.include):
        key = f"include[{index}]"
        values = _axis_values(entry, file, key)
        named |= set(values)
        points.extend(grid.included(values, axes, key=key))
        if len(points) > grid.MAX_CELLS:
            raise InputError(f"expected at most {grid.MAX_CELLS} cells, found more", key=key)
    extra = [name for name in grid.AXES if name in named and name not in grid.MAIN_AXES]
    labels: set[str] = set()
    checked: set[tuple[str | None, bool]] = set()
    for point in points:
        cell = _resolve(matrix, point, extra, file, document)
        if cell.label in labels:  # methods without a teacher come once, not once per teacher
            continue
        labels.add(cell.label)
        # A local checkpoint that no run could use is refused before anything is started.
        teacher = (cell.teacher_name, cell.method_spec.classifier)
        if cell.teacher is not None and teacher not in checked:
            read_local_teacher(cell)
            checked.add(teacher)
        yield cell


def _axis_values(entry: Mapping[str, Any], file: MatrixFile, key: str) -> dict[str, Any]:
    """Check a table of values by axis, and that the file has what they name."""
    values = grid.parse_values(entry, key=key)
    known = {"method": known_methods(), "student": file.students, "teacher": file.teachers}
    for axis, names in known.items():
        for index, name in enumerate(values.get(axis, ())):
            if name in names:
                continue
            problem, hint = f"unknown {axis} {name!r}", suggest_methods(name)
            if axis != "method":
                problem += f": no [{axis}s.{name}]"
                hint = did_you_mean(name, names) or f"the file has {quoted(names) or 'none'}"
            place = f"{key}.{dotted_key([axis, index], entry)}"
            raise InputError(problem, key=place, hint=hint)
    return values


def _resolve(
    matrix: str, point: grid.Point, extra: Sequence[str], file: MatrixFile, document: Document
) -> Cell:
    method, size, student_name = point["method"], point["image_size"], point["student"]
    spec = find_method(method)
    teacher_name = point["teacher"] if spec.has_teacher else None
    if teacher_name is None and spec.has_teacher:
        problem = f"the method {method!r} needs a teacher, found none"
        raise InputError(problem, key="axes.teacher")
    refined = {name: point[name] for name in extra if point.get(name) is not None}
    training = validate(Training, document.get("training", {}) | refined, prefix="training")
    student = file.students[student_name]
    teacher = file.teachers[teacher_name] if teacher_name else None
    check_shape(f"students.{student_name}", student, size, file.data.classes)
    if teacher is not None:
        key = f"teachers.{teacher_name}"
        check_shape(key, teacher, teacher.image_size, file.data.classes)
        check_weights_source(key, teacher, file.data)
    if spec.teacher == "image-embeddings" and file.data.crop is not None:
        raise InputError(
            f"the method {method!r} keeps one embedding of each image, found random crops",
            key="data.crop",
            hint="a crop of its own in each epoch needs a teacher in each step: teacher-kd",
        )
    check_data(file.data, training, file.mode)
    main = [method, student_name, f"{size}px", *([teacher_name] if teacher_name else [])]
    return Cell(
        label="/".join([*main, *(f"{name}={written(value)}" for name, value in refined.items())]),
        matrix=matrix,
        method=method,
        student_name=student_name,
        student=student,
        image_size=size,
        teacher_name=teacher_name,
        teacher=teacher,
        data=file.data,
        training=_with_loss_weights(training, has_teacher=spec.has_teacher),
        content_digests=tuple(_content_digests(method, teacher_name, teacher, file.data)),
    )


def _with_loss_weights(training: Training, *, has_teacher: bool) -> Training:
    """Resolve the weights of the losses; the published code's are fixed (DESIGN, Loss)."""
    alpha1, alpha2 = training.alpha1, training.alpha2
    if training.loss == "published-code":
        alpha1, alpha2 = 1.0, 0.5
    elif alpha1 is None:
        alpha1 = 1.0 - alpha2
    if not has_teacher:  # it has one loss, which nothing weighs against
        alpha1, alpha2 = 1.0, 0.0
    return training.model_copy(update={"alpha1": alpha1, "alpha2": alpha2})


def _content_digests(
    method: str, teacher_name: str | None, teacher: Teacher | None, data: Data
) -> Iterator[tuple[str, str]]:
    """Digest what a cell reads of local files, whose names do not say what is in them.

    Yields what it is of (method, for a plug-in's code; teacher; data) and the digest.
    """
    module = plugin_module(method)
    if module is not None:
        yield "method", fingerprint_module(module)
    paths = []
    if teacher is not None and teacher.weights == "pretrained":
        paths.append(("teacher", teacher.checkpoint, f"teachers.{teacher_name}.checkpoint"))
    if data.source == "datasets":
        paths.append(("data", data.path, "data.path"))
    for kind, path, key in paths:
        # What is not there is a name on the hub, and has a revision.
        if path is not None and Path(path).exists():
            try:
                yield kind, fingerprint_path(Path(path))
            except OSError as error:
                problem = f"cannot read {short_repr(path)}: {os_reason(error)}"
                raise InputError(problem, key=key) from None
