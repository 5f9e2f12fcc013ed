"""The paper's tables, from a matrix: teachers, students, and how they are trained.

Parameters are counted from shapes alone, since the command line must not load torch; a test checks
each count against the model.
"""

from collections.abc import Callable, Iterable

from kdbench.analysis.markup import FORMATS, Table
from kdbench.common.errors import InputError, check_name, quoted
from kdbench.common.units import MISSING
from kdbench.matrix.file import Matrix
from kdbench.spec.settings import Student, Teacher, Training


def tables(matrix: Matrix, *, table: str | None = None, format: str = "markdown") -> str:  # noqa: A002
    """Write the tables (teachers, students, training) of a matrix as markdown or latex.

    Raises InputError for an unknown table or format, or teachers wanted of a matrix without any.
    """
    if table is not None:
        check_name(table, TABLES, "table", "--table")
    check_name(format, FORMATS, "format", "--format")
    made = [make(matrix) for name, make in TABLES.items() if table in (None, name)]
    written = [FORMATS[format](one) for one in made if one.rows]
    if not written:
        raise InputError(
            f"no {table} in this matrix: none of its methods has a teacher",
            where="--table",
            hint=f"the tables are {quoted(TABLES)}",
        )
    return "\n\n".join(written)


def teachers_table(matrix: Matrix) -> Table:
    """List the teachers that some cell uses: shape, parameters, where the weights come from."""
    rows = {}
    for cell in matrix.cells:
        teacher = cell.teacher
        if teacher is None:
            continue
        revision = f" ({teacher.revision})" if teacher.revision else ""
        rows[cell.teacher_name] = (
            str(cell.teacher_name),
            f"{teacher.checkpoint}{revision}" if teacher.checkpoint is not None else MISSING,
            *_shape(teacher),
            str(teacher.image_size),
            _millions(teacher_parameters(teacher)),
            teacher.weights,
        )
    return Table(
        title="Teachers",
        head=("name", "checkpoint", *_SHAPE, "image size", "parameters", "weights"),
        numeric=(False, False, *[True] * 6, False),
        rows=tuple(rows.values()),
        notes=("parameters: of the whole checkpoint, its pooler included",) if rows else (),
    )


def students_table(matrix: Matrix) -> Table:
    """List the students that some cell trains, with their size for each kind of teacher."""
    rows = {}
    inferred = False
    for cell in matrix.cells:
        shape = cell.student
        width = cell.required_teacher.width if cell.method_spec.uses_projection else None
        count = student_parameters(
            shape, image_size=cell.image_size, classes=cell.data.classes, teacher_width=width
        )
        inferred = inferred or shape.inferred
        rows[cell.student_name, cell.image_size, width or 0] = (
            cell.student_name + ("*" if shape.inferred else ""),
            *_shape(shape),
            str(cell.image_size),
            str(cell.data.classes),
            MISSING if width is None else str(width),
            _millions(count),
        )
    order = {name: rank for rank, name in enumerate(dict.fromkeys(key[0] for key in rows))}
    return Table(
        title="Students",
        head=("name", *_SHAPE, "image size", "classes", "teacher width", "parameters"),
        numeric=(False, *[True] * 8),
        rows=tuple(rows[key] for key in sorted(rows, key=lambda k: (order[k[0]], *k[1:]))),
        notes=("* shape inferred from the memory that the paper reports, not published",)
        if inferred
        else (),
    )


def training_table(matrix: Matrix) -> Table:
    """List how the cells are trained; a parameter that differs between cells has all its values."""
    cells = matrix.cells
    rows = [
        ("data set", _values(cell.data.name for cell in cells)),
        ("classes", _values(f"{cell.data.classes:,}" for cell in cells)),
        ("training images", _values(f"{cell.data.train_images:,}" for cell in cells)),
        ("test images", _values(f"{cell.data.test_images:,}" for cell in cells)),
        ("methods", _values(cell.method for cell in cells)),
    ]
    # Whatever a later version lets a matrix set is listed too, under its own name.
    for name in {**_TRAINING, **Training.model_fields}:
        # Without a teacher there is nothing to weigh the losses for.
        weighs = name in ("alpha1", "alpha2")
        asked = [cell for cell in cells if cell.teacher is not None or not weighs]
        if asked:
            title = _TRAINING.get(name, name.replace("_", " "))
            rows.append((title, _values(_plain(getattr(c.training, name)) for c in asked)))
    rows.append(("seeds", ", ".join(str(seed) for seed in matrix.seeds)))
    return Table("Training", ("parameter", "value"), (False, False), tuple(rows))


_SHAPE = ("patch", "width", "depth", "heads")
_TRAINING = {
    "optimizer": "optimizer",
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
    "batch_size": "batch size",
    "epochs": "epochs",
    "loss": "loss",
    "alpha1": "alpha1 (classification)",
    "alpha2": "alpha2 (distillation)",
    "precision": "precision",
    "attention": "attention",
    "compile": "compiled student",
    "checkpointing": "activation checkpointing",
    "images_per_class": "images per class embedding",
    "precompute_batch_size": "batch size of a precompute",
}

TABLES: dict[str, Callable[[Matrix], Table]] = {
    "teachers": teachers_table,
    "students": students_table,
    "training": training_table,
}


def _shape(shape: Student | Teacher) -> tuple[str, ...]:
    return tuple(str(n) for n in (shape.patch_size, shape.width, shape.depth, shape.heads))


def _millions(count: int) -> str:
    return f"{count / 1e6:,.2f} M" if count >= 1e6 else f"{count:,}"


def _values(texts: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(texts))


def _plain(value: object) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def student_parameters(
    shape: Student, *, image_size: int, classes: int, teacher_width: int | None
) -> int:
    """Count a student's parameters; `teacher_width` None: no teacher, and so no projection."""
    width = shape.width
    tokens = (image_size // shape.patch_size) ** 2 + 1
    patches = 3 * shape.patch_size**2 * width  # without a bias
    class_token, positions = width, tokens * width
    norms = 2 * 2 * width
    projection = _linear(teacher_width, width) if teacher_width is not None else 0
    ends = patches + class_token + positions + norms + _linear(width, classes) + projection
    return ends + shape.depth * _block(width)


def teacher_parameters(shape: Teacher) -> int:
    """Count the parameters of a ViT as its checkpoint holds them, the pooler included.

    Kdbench reads the class token before the pooler, which is loaded all the same.
    """
    width = shape.width
    tokens = (shape.image_size // shape.patch_size) ** 2 + 1
    patches = 3 * shape.patch_size**2 * width + width
    class_token, positions = width, tokens * width
    norm, pooler = 2 * width, _linear(width, width)
    return patches + class_token + positions + norm + pooler + shape.depth * _block(width)


def _linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def _block(width: int) -> int:
    """Count attention (query, key, value, output), a 4x MLP, and two LayerNorms."""
    attention = 4 * _linear(width, width)
    mlp = _linear(width, 4 * width) + _linear(4 * width, width)
    return attention + mlp + 2 * 2 * width
