"""What the settings of a matrix file must fit, checked before anything is allocated."""

from pathlib import Path

from kdbench.common.errors import InputError, short_repr
from kdbench.spec.cell import Mode
from kdbench.spec.settings import Data, Student, Teacher, Training

# Above these something is a typing error, or meant to fill a machine.
_MAX_WEIGHTS = 10**12
_MAX_EMBEDDED = 10**8
_MAX_RUNS = 100_000


def check_shape(key: str, shape: Student | Teacher, image_size: int, classes: int) -> None:
    """Refuse a vision transformer that does not fit its images, or has too many weights.

    `key` is its table's key.
    """
    if image_size % shape.patch_size:
        near = max(1, round(image_size / shape.patch_size)) * shape.patch_size
        raise InputError(
            f"image size {image_size} is not divisible by the patch size {shape.patch_size}",
            key=f"{key}.patch_size",
            hint=f"the nearest that is: {near}",
        )
    if shape.width % shape.heads:
        problem = f"width {shape.width} is not divisible by {shape.heads} heads"
        raise InputError(problem, key=f"{key}.width")
    patches = (image_size // shape.patch_size) ** 2
    outside = patches + 3 * shape.patch_size**2 + classes
    weights = shape.width * (12 * shape.depth * shape.width + outside)
    if weights > _MAX_WEIGHTS:
        raise InputError(
            f"expected a model of at most {_MAX_WEIGHTS:,} weights, found one of {weights:,}",
            key=key,
        )


def check_weights_source(key: str, teacher: Teacher, data: Data) -> None:
    """Refuse a teacher whose weights come from nowhere; `key` is its table's key."""
    if teacher.weights == "pretrained" and not teacher.checkpoint:
        raise InputError(
            'weights = "pretrained" needs a hub name or a local folder, found none',
            key=f"{key}.checkpoint",
        )
    if teacher.weights == "pretrained" and _is_missing_path(str(teacher.checkpoint)):
        raise InputError(
            "expected a hub name or a local folder, found no folder "
            f"{short_repr(teacher.checkpoint)}",
            key=f"{key}.checkpoint",
            hint="a path is relative to the folder that kdbench is started in",
        )
    if teacher.weights == "fitted" and data.source == "synthetic":
        raise InputError(
            'weights = "fitted" needs real images, found data.source = "synthetic"',
            key=f"{key}.weights",
        )


def _is_missing_path(name: str) -> bool:
    """Whether a name is written as a path, and nothing is there; hub names are `owner/name`."""
    written_as_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    return written_as_path and not Path(name).exists()


def check_data(data: Data, training: Training, mode: Mode) -> None:
    """Refuse data that the training cannot use.

    Of real images there are no more than the data set has; synthetic ones are made as asked for,
    also those behind class embeddings.
    """
    if data.source == "datasets" and not data.path:
        raise InputError(
            'source = "datasets" needs a hub name, a local folder or a .parquet file, found none',
            key="data.path",
        )
    if data.source != "datasets" and data.storage == "stream":
        raise InputError(
            f'storage = "stream" needs source = "datasets", found {data.source!r}',
            key="data.storage",
            hint="what kdbench makes itself is in memory already",
        )
    if mode == "train" and data.source == "synthetic":
        raise InputError(
            'mode = "train" needs real images, found source = "synthetic"',
            key="data.source",
            hint='"digits" is bundled',
        )
    if data.train_images < training.batch_size:
        raise InputError(
            f"expected at least one batch of {training.batch_size} images, found "
            f"{data.train_images}",
            key="data.train_images",
        )
    embedded = data.classes * training.images_per_class
    if data.source == "synthetic" and embedded > _MAX_EMBEDDED:
        raise InputError(
            f"expected at most {_MAX_EMBEDDED:,} images behind all class embeddings, found "
            f"{embedded:,}",
            key="training.images_per_class",
        )


def check_runs(cells: int, seeds: int, repeats: int) -> None:
    """Refuse a matrix without a cell, and one of too many runs."""
    if not cells:
        raise InputError("no cells left: [[exclude]] drops every one", key="exclude")
    if cells * seeds * repeats > _MAX_RUNS:
        raise InputError(
            f"expected at most {_MAX_RUNS} runs (cells x seeds x repeats), found {cells} x {seeds} "
            f"x {repeats}",
            key="repeats",
        )
