"""A local checkpoint as a whole: whatever `run` would refuse of it, before anything is started."""

from __future__ import annotations

from dataclasses import dataclass

from kdbench.spec.cell import Cell
from kdbench.spec.preprocessing import Described
from kdbench.spec.pretrained.config import Config, check_class_count, read_config
from kdbench.spec.pretrained.files import find_local
from kdbench.spec.pretrained.processor import describe
from kdbench.spec.pretrained.weights import Held, check_weights


@dataclass(frozen=True, kw_only=True)
class Local:
    """What a local folder says of a teacher.

    Attributes:
        config: its configuration; None: the weights are from no folder.
        held: what its weights make up; None where only transformers can tell.
        pixels: what its pixels go through.
    """

    config: Config | None
    held: Held | None
    pixels: Described


def read_local(cell: Cell) -> Local | None:
    """Read and check what is at hand of a cell's teacher.

    Returns:
        What was found; None where it is on the hub, and without a network nothing can be said.

    Raises:
        InputError: there is a folder, and it is not what the cell asks for.
    """
    teacher, table = cell.required_teacher, f"teachers.{cell.teacher_name}"
    side = cell.data.image_size
    if teacher.weights != "pretrained":
        return Local(config=None, held=None, pixels=describe(teacher, table, None, side=side))
    checkpoint = find_local(teacher, table)
    if checkpoint is None:
        describe(teacher, table, None, side=side)  # the matrix file's own keys
        return None
    config = read_config(checkpoint, teacher)
    classifier = cell.declared.classifier
    held = check_weights(checkpoint, config, classifier=classifier)
    if classifier:
        check_class_count(checkpoint, config, cell.data.classes)
    pixels = describe(teacher, table, checkpoint, side=side)
    return Local(config=config, held=held, pixels=pixels)
