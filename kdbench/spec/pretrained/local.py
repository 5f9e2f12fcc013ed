"""A local checkpoint, checked for everything that a run would refuse later."""

from dataclasses import dataclass

from kdbench.spec.cell import Cell
from kdbench.spec.preprocessing import Preprocessing
from kdbench.spec.pretrained.config import Config, check_class_count, read_config
from kdbench.spec.pretrained.files import find_local
from kdbench.spec.pretrained.processor import resolve_teacher_preprocessing
from kdbench.spec.pretrained.weights import check_weights


@dataclass(frozen=True, kw_only=True)
class LocalTeacher:
    """What is known of a teacher without the hub."""

    preprocessing: Preprocessing  #: what its images go through
    config: Config | None = None  #: its checkpoint's configuration; None if it has no checkpoint
    #: whether its weights include a pooler; None if that is not known
    has_pooler: bool | None = None


def read_local_teacher(cell: Cell) -> LocalTeacher | None:
    """Read and check a cell's teacher in its local folder; None if its checkpoint is on the hub."""
    teacher, table = cell.required_teacher, f"teachers.{cell.teacher_name}"
    side = cell.data.image_size
    checkpoint = find_local(teacher, table) if teacher.weights == "pretrained" else None
    if checkpoint is None:
        preprocessing = resolve_teacher_preprocessing(teacher, table, None, side=side)
        return (
            None if teacher.weights == "pretrained" else LocalTeacher(preprocessing=preprocessing)
        )
    config = read_config(checkpoint, teacher)
    classifier = cell.method_spec.classifier
    has_pooler = check_weights(checkpoint, config, classifier=classifier)
    if classifier:
        check_class_count(checkpoint, config, cell.data.classes)
    preprocessing = resolve_teacher_preprocessing(teacher, table, checkpoint, side=side)
    return LocalTeacher(preprocessing=preprocessing, config=config, has_pooler=has_pooler)
