"""A cell of the matrix, frozen, with the identity that its results are filed under.

Everything here travels to the worker as JSON and is checked again there by the same models.
"""

import hashlib
import json
from collections.abc import Iterable
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt

from kdbench.spec.budget import NOT_MEASURED, Budget
from kdbench.spec.method import BUILT_IN, Method, find_method
from kdbench.spec.settings import Data, Frozen, Name, Seed, Side, Student, Teacher, Training

Mode = Literal["profile", "train"]
Launch = Literal["spawn", "fork"]
# Sizes of data and batch that are listed in one line; an axis may have hundreds.
_MOST_LISTED = 3
# The columns of `cells` that are settings of the training and of the run, under the same names.
_TRAINING_COLUMNS = (
    *("batch_size", "epochs", "precision", "attention", "loss", "alpha1", "alpha2", "optimizer"),
    *("optimizer_kernels", "learning_rate", "compile", "checkpointing"),
)
# What decides nothing that is allocated: names, and numbers that a step only multiplies by. A
# plug-in's method may do more with the latter.
_NAMES = {"label", "matrix", "student_name", "teacher_name"}
_FACTORS = {"alpha1", "alpha2", "learning_rate"}
_RUN_COLUMNS = ("seed", "repeat", "device", "launch", "source", "profile")


class Cell(Frozen):
    """One point of the matrix, everything resolved.

    `alpha1` is set in `training`; a method without a teacher has `teacher = None`.
    """

    label: str
    matrix: Name
    method: Name
    student_name: Name
    student: Student
    image_size: Side
    teacher_name: Name | None
    teacher: Teacher | None
    data: Data
    training: Training
    #: of local checkpoints, data and a plugged-in method's code: digests of their files
    content_digests: tuple[tuple[str, str], ...] = Field(default=(), strict=False)

    @property
    def cell_id(self) -> str:
        """Hash of everything that decides what a step computes and its result (16 hex digits).

        Names and labels are not in it, so a renamed student keeps its results comparable.
        """
        return digest(
            {
                "method": self.method,
                "student": self.student.model_dump(exclude={"inferred"}),
                "image_size": self.image_size,
                "teacher": self._teacher_identity(),
                "data": self.data.model_dump(exclude={"name"}),
                "training": self.training.model_dump(),
                "content": self.content_digests,
            }
        )

    def trace_key(self, *, any_batch: bool = False) -> str:
        """Hash of everything that decides what its training allocates (16 hex digits).

        The batch size is left out with `any_batch`.
        """
        free = _FACTORS if self.method in BUILT_IN else set[str]()
        training = free | {"batch_size"} if any_batch else free
        left_out: dict[str, Any] = {"training": training, **dict.fromkeys(_NAMES, True)}
        return digest(self.model_dump(mode="json", exclude=left_out))

    @property
    def method_spec(self) -> Method:
        """What the cell's method declares."""
        return find_method(self.method)

    def _teacher_identity(self) -> dict[str, Any] | None:
        if self.teacher is None:
            return None
        unused = set() if self.teacher.weights == "fitted" else {"fit"}
        if self.teacher.weights != "pretrained":
            unused |= {"checkpoint", "revision"}
        return self.teacher.identity(without=unused)

    @property
    def required_teacher(self) -> Teacher:
        """The teacher, where only a method with one comes."""
        if self.teacher is None:
            raise RuntimeError(f"the method {self.method!r} has no teacher")
        return self.teacher

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last, smaller batch is dropped, as the paper's."""
        return max(1, self.data.train_images // self.training.batch_size)

    @property
    def dropped_images(self) -> int:
        """Images of each epoch that are in no step; which ones is drawn anew every time."""
        return max(0, self.data.train_images - self.steps_per_epoch * self.training.batch_size)


class CellRun(Frozen):
    """One run of a cell: what the worker is asked to do."""

    cell: Cell
    mode: Mode
    seed: Seed
    repeat: Annotated[int, Field(ge=0)]
    device: str
    threads: PositiveInt | None
    budget: Budget
    launch: Launch = "spawn"
    source: Literal["measured", "predicted"] = "measured"
    #: the device profile of a prediction; None: it is measured
    profile: str | None = None

    def run_key(self, *, worker_digest: str, environment: dict[str, str | None]) -> str:
        """Key of this run's rows: the cell, how it is run, by which code and on what machine.

        How long a run may take and which checkpoints it leaves change nothing that is measured:
        one that ran out of time is gone on with under a longer limit.
        """
        return digest(
            {
                "cell_id": self.cell.cell_id,
                "label": self.cell.label,
                **self.model_dump(exclude={"cell": True, "budget": NOT_MEASURED}),
                "worker": worker_digest,
                "environment": environment,
            }
        )

    def plan_row(self) -> dict[str, Any]:
        """Return the columns of `cells` that are known before anything runs."""
        cell = self.cell
        return {
            "cell_id": cell.cell_id,
            "label": cell.label,
            "matrix": cell.matrix,
            "mode": self.mode,
            "method": cell.method,
            "student": cell.student_name,
            "student_inferred": cell.student.inferred,
            "image_size": cell.image_size,
            "teacher": cell.teacher_name,
            "teacher_weights": cell.teacher.weights if cell.teacher else None,
            "teacher_checkpoint": cell.teacher.checkpoint if cell.teacher else None,
            "dataset": cell.data.name,
            **{name: getattr(cell.training, name) for name in _TRAINING_COLUMNS},
            **{name: getattr(self, name) for name in _RUN_COLUMNS},
        }


def describe_dropped_images(cells: Iterable[Cell]) -> str | None:
    """Say in a line how many images of an epoch are in no step; None where there is none."""
    sizes = {
        f"{cell.data.name}, {cell.data.train_images:,} images in batches of "
        f"{cell.training.batch_size:,}: {cell.steps_per_epoch:,} "
        f"step{'s' * (cell.steps_per_epoch > 1)}, {cell.dropped_images:,} left out": None
        for cell in cells
        if cell.dropped_images
    }
    if not sizes:
        return None
    listed = "; ".join(islice(sizes, _MOST_LISTED))
    more = f"; and {len(sizes) - _MOST_LISTED} more like it" if len(sizes) > _MOST_LISTED else ""
    return f"each epoch drops its last, incomplete batch: {listed}{more}"


def digest(value: object) -> str:
    """Hash any JSON value: 16 hex digits of BLAKE2b over its canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
