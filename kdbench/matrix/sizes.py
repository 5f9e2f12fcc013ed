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
    """Refuse a model that no machine holds.

    Args:
        key: the shape's table in the file.
        shape: of a vision transformer.
        image_size: side of its input in pixels.
        classes: of the data set.
        where: the file.

    Raises:
        InputError: it has more than `MAX_WEIGHTS`.
    """
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
    """Refuse more images behind all class embeddings than can be listed.

    Of real images there are no more than the data set has; synthetic ones are made as asked for.

    Raises:
        InputError: there are more than `MAX_EMBEDDED`.
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
    """Refuse more runs than anybody waits for.

    Raises:
        InputError: there are more than `MAX_RUNS`.
    """
    runs = cells * seeds * repeats
    if runs > MAX_RUNS:
        raise InputError(
            f"expected at most {MAX_RUNS} runs (cells x seeds x repeats), found {cells} x {seeds} "
            f"x {repeats}",
            where=where,
            key="repeats",
        )
