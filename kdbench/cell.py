"""A cell of the matrix, frozen, with the identity that its results are filed under.

Everything here travels to the worker as JSON and is checked again there by the same models.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PositiveInt, field_validator

from kdbench.errors import brief
from kdbench.method import Method, find_method

Mode = Literal["profile", "train"]
Launch = Literal["spawn", "fork"]
Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Attention = Literal["eager", "sdpa"]
OptimizerKernels = Literal["auto", "single", "foreach", "fused"]
Loss = Literal["paper", "published-code"]

# The largest numbers a matrix may ask for: far above any use, and small enough that a typing
# error is told instead of being allocated.
Side = Annotated[int, Field(ge=1, le=8192)]
Width = Annotated[int, Field(ge=1, le=65536)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1)]
Weight = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Seconds = Annotated[float, Field(gt=0, le=10**8, allow_inf_nan=False)]
# A name becomes part of a label and of a file's path.
NAME, LONGEST_NAME = "^[A-Za-z0-9][A-Za-z0-9._+-]*$", 80
Name = Annotated[str, Field(pattern=NAME, max_length=LONGEST_NAME)]


def _path(text: str) -> str:
    if any(len(part.encode()) > 255 for part in text.split("/")) or not text.isprintable():
        raise ValueError(f"expected a path or a name on the hub, found {brief(text)}")
    return text


def _inside(text: str) -> str:
    if text.startswith(("/", "~")) or ".." in text.split("/"):
        raise ValueError(f"expected a name inside the data set, found {brief(text)}")
    return _path(text)


#: A file or folder, or a name on the hub: one that the system can be asked for.
Located = Annotated[str, Field(min_length=1, max_length=4000), AfterValidator(_path)]
#: Something inside of that, which leads nowhere else.
Part = Annotated[str, Field(min_length=1, max_length=1000), AfterValidator(_inside)]
Revision = Annotated[str, Field(min_length=1, max_length=250), AfterValidator(_inside)]
Column = Annotated[str, Field(max_length=1000)]


class Frozen(BaseModel):
    """Settings: immutable, no unknown key, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Student(Frozen):
    """Shape of a CLIP-style vision transformer."""

    patch_size: Side
    width: Width
    depth: Annotated[int, Field(ge=1, le=1024)]
    heads: Annotated[int, Field(ge=1, le=1024)]
    #: dropout on the attention weights
    attention_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    #: the shape is inferred, not published; said wherever the student is shown
    inferred: bool = False


class Fit(Frozen):
    """How kdbench fits a small teacher itself, on the data set's training images."""

    epochs: Annotated[int, Field(ge=1, le=10_000)] = 15
    learning_rate: Rate = 1e-3
    batch_size: Annotated[int, Field(ge=1, le=65536)] = 64
    seed: Seed = 0


class Teacher(Frozen):
    """A Hugging Face ViT: its shape, and where its weights come from."""

    patch_size: Side
    width: Width
    depth: Annotated[int, Field(ge=1, le=1024)]
    heads: Annotated[int, Field(ge=1, le=1024)]
    image_size: Side = 224
    #: random: drawn at random (memory and time do not depend on them); pretrained: from
    #: `checkpoint`; fitted: trained by kdbench on the data set, and cached
    weights: Literal["random", "pretrained", "fitted"] = "random"
    #: hub name, or a local folder that `save_pretrained` wrote
    checkpoint: Located | None = None
    #: commit, tag or branch of the hub's repository
    revision: Revision | None = None
    fit: Fit = Fit()


class Data(Frozen):
    """The data set."""

    #: synthetic: random images of the given shape; digits: scikit-learn's, bundled with it;
    #: datasets: whatever the `datasets` library loads from `path`
    source: Literal["synthetic", "digits", "datasets"] = "synthetic"
    name: Name
    classes: Annotated[int, Field(ge=2, le=1_000_000)]
    #: side of the stored images in pixels; `datasets` resizes what it reads to it
    image_size: Side = 32
    train_images: Count
    test_images: Count
    #: random horizontal flip in training
    flip: bool = True
    #: random resized crop in training: the smallest and largest share of an image's area that is
    #: kept, such as [0.08, 1.0]; None: no crop
    crop: Annotated[tuple[Share, Share], Field(strict=False)] | None = None
    #: where source = "datasets" is kept, as uint8. device: with the training; stream: nowhere, it
    #: is decoded again in each epoch; auto: on the device, if a quarter of its free memory will do
    storage: Literal["auto", "device", "stream"] = "auto"
    #: processes that decode images
    workers: Annotated[int, Field(ge=1, le=256)] = 4
    #: for source = "datasets": hub name (owner/name), local folder or .parquet file...
    path: Located | None = None
    #: ...its configuration: of a hub data set, or a folder inside the local one...
    config: Part | None = None
    #: ...commit, tag or branch of the hub's repository...
    revision: Revision | None = None
    #: ...and its splits and columns; of parquet and of the hub also a part, as "train[:80%]"
    train_split: Part = "train"
    test_split: Part = "test"
    image_column: Column = "img"
    label_column: Column = "label"

    @field_validator("crop")
    @classmethod
    def _ordered(cls, crop: tuple[float, float] | None) -> tuple[float, float] | None:
        if crop is not None and crop[0] > crop[1]:
            raise ValueError(
                f"expected the smallest share first, then the largest, found {list(crop)}"
            )
        return crop


class Training(Frozen):
    """One training, as DESIGN's "The paper's training, exactly" has it."""

    batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = 64
    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 200
    precision: Precision = "fp32"
    attention: Attention = "eager"
    #: the student is compiled by torch
    compile: bool = False
    #: the activations inside the student's blocks are dropped and computed again in backward
    checkpointing: bool = False
    loss: Loss = "paper"
    #: None: 1 - alpha2
    alpha1: Weight | None = None
    alpha2: Weight = 0.5
    optimizer: Literal["adamw"] = "adamw"
    #: how the optimizer works through the parameters: one after another (single), in horizontal
    #: passes over all of them (foreach), in one kernel (fused); auto is torch's own choice: foreach
    #: on CUDA, single on a CPU
    optimizer_kernels: OptimizerKernels = "auto"
    learning_rate: Rate = 1e-4
    weight_decay: Weight = 0.1
    #: training images per class behind a class embedding
    images_per_class: Annotated[int, Field(ge=1, le=1_000_000)] = 100
    #: images that the teacher embeds at once in a precompute: apart from `batch_size`, so that
    #: cells of all batch sizes share its result to the bit
    precompute_batch_size: Annotated[int, Field(ge=1, le=1_048_576)] = 64


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


# Settings of a budget that leave what is measured as it is.
_NOT_MEASURED = {"timeout_seconds", "phase_timeouts", "checkpoints", "checkpoint_seconds"}


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

    @property
    def declared(self) -> Method:
        """What the cell's method declares.

        Raises:
            InputError: no such method is installed.
        """
        return find_method(self.method)

    def _teacher_identity(self) -> dict[str, Any] | None:
        if self.teacher is None:
            return None
        unused = set() if self.teacher.weights == "fitted" else {"fit"}
        if self.teacher.weights != "pretrained":
            unused |= {"checkpoint", "revision"}
        return self.teacher.model_dump(exclude=unused)

    @property
    def required_teacher(self) -> Teacher:
        """The teacher, where only a method with one comes.

        Raises:
            RuntimeError: the method has none.
        """
        if self.teacher is None:
            raise RuntimeError(f"the method {self.method!r} has no teacher")
        return self.teacher

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in an epoch; the last, smaller batch is dropped, as the paper's."""
        return max(1, self.data.train_images // self.training.batch_size)


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

        Args:
            worker_digest: digest of the worker's own code.
            environment: the parts of the environment that matter to the result.
        """
        return digest(
            {
                "cell_id": self.cell.cell_id,
                "label": self.cell.label,
                **self.model_dump(exclude={"cell": True, "budget": _NOT_MEASURED}),
                "worker": worker_digest,
                "environment": environment,
            }
        )

    def plan_row(self) -> dict[str, Any]:
        """Return the columns of `cells` that are known before anything runs."""
        cell, training = self.cell, self.cell.training
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
            "batch_size": training.batch_size,
            "epochs": training.epochs,
            "precision": training.precision,
            "attention": training.attention,
            "loss": training.loss,
            "alpha1": training.alpha1,
            "alpha2": training.alpha2,
            "optimizer": training.optimizer,
            "optimizer_kernels": training.optimizer_kernels,
            "learning_rate": training.learning_rate,
            "compile": training.compile,
            "checkpointing": training.checkpointing,
            "seed": self.seed,
            "repeat": self.repeat,
            "device": self.device,
            "launch": self.launch,
            "source": self.source,
            "profile": self.profile,
        }


def digest(value: object) -> str:
    """Hash any JSON value: 16 hex digits of BLAKE2b over its canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
