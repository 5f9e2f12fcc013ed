"""Products of numbers that a matrix file may each ask for, told before anything is allocated."""

from kdbench.common.errors import InputError
from kdbench.spec.settings import Data, Student, Teacher, Training

# Above these something is a typing error, or meant to fill a machine.
MAX_WEIGHTS = 10**12
MAX_EMBEDDED = 10**8
MAX_RUNS = 100_000


def check_size(
    key: str, shape: Student | Teacher, image_size: int, classes: int, where: object
) -> None:
    """Refuse a vision transformer of more than `MAX_WEIGHTS` weights; `key` is its table's key."""
    patches = (image_size // shape.patch_size) ** 2
    outside = patches + 3 * shape.patch_size**2 + classes
    weights = shape.width * (12 * shape.depth * shape.width + outside)
    if weights > MAX_WEIGHTS:
        raise InputError(
            f"expected a model of at most {MAX_WEIGHTS:,} weights, found one of {weights:,}",
            where=where,
            key=key,
        )


def check_embedded(data: Data, training: Training, where: object) -> None:
    """Refuse more than `MAX_EMBEDDED` images behind all class embeddings.

    Of real images there are no more than the data set has; synthetic ones are made as asked for.
    """
    embedded = data.classes * training.images_per_class
    if data.source == "synthetic" and embedded > MAX_EMBEDDED:
        raise InputError(
            f"expected at most {MAX_EMBEDDED:,} images behind all class embeddings, found "
            f"{embedded:,}",
            where=where,
            key="training.images_per_class",
        )


def check_runs(cells: int, seeds: int, repeats: int, where: object) -> None:
    """Refuse more than `MAX_RUNS` runs."""
    runs = cells * seeds * repeats
    if runs > MAX_RUNS:
        raise InputError(
            f"expected at most {MAX_RUNS} runs (cells x seeds x repeats), found {cells} x {seeds} "
            f"x {repeats}",
            where=where,
            key="repeats",
        )
