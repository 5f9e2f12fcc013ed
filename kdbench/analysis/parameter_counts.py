"""How many parameters a model of some shape has, counted from the shape alone.

The command line must not load torch, so nothing is built; a test holds each count to the model.
"""

from kdbench.spec.settings import Student, Teacher

_CHANNELS = 3


def student_parameters(
    shape: Student, *, image_size: int, classes: int, teacher_width: int | None
) -> int:
    """Count a student's parameters.

    `image_size` is the side of its input in pixels; `teacher_width` is the width of the embeddings
    that it projects (None: no teacher, and so no projection).
    """
    width = shape.width
    tokens = (image_size // shape.patch_size) ** 2 + 1
    patches = _CHANNELS * shape.patch_size**2 * width  # without a bias
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
    patches = _CHANNELS * shape.patch_size**2 * width + width
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
