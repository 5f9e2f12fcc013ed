"""The methods by name: what each needs of its teacher, and where its step is.

Nothing here imports torch: a matrix file is resolved, shown and planned by what a method declares.
The step itself is found by its name, in the measured process alone.

A package adds a method by an entry point of the group `kdbench.methods`, whose name is what matrix
files call it and whose object is a `Method` (docs/how-to/add-a-method.md has a worked example).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Literal

from kdbench.common.errors import InputError, first_line, near_or_all, quoted
from kdbench.common.text import validate_name

GROUP = "kdbench.methods"

#: none: no teacher; step: it runs on every batch; class-embeddings: its mean embedding of each
#: class, image-embeddings: its embedding of each training image, computed before the first step
TeacherUse = Literal["none", "step", "class-embeddings", "image-embeddings"]
_USES = ("none", "step", "class-embeddings", "image-embeddings")
_STEP = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


@dataclass(frozen=True, kw_only=True)
class Method:
    """What a method declares.

    Attributes:
        step: "package.module:function"; the function takes a `kdbench.plugin.Parts` and
            returns the forward pass of a step.
        teacher: what the method uses of its teacher.
        classifier: the teacher gives scores of the data set's own classes, not embeddings; for
            teacher = "step" alone. The student then has no projection.
        projection: the student has a linear layer from the teacher's width to its own, for
            `student.project`. False: the method has no use for it, or layers of its own.
    """

    step: str
    teacher: TeacherUse
    classifier: bool = False
    projection: bool = True

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ValueError: a field is not one of its values.
        """
        if not isinstance(self.step, str) or not _STEP.fullmatch(self.step):
            raise ValueError(f"step: expected 'package.module:function', found {self.step!r}")
        if self.teacher not in _USES:
            raise ValueError(f"teacher: expected one of {quoted(_USES)}, found {self.teacher!r}")
        if self.classifier and self.teacher != "step":
            raise ValueError("classifier: expected teacher = 'step' with it")

    @property
    def has_teacher(self) -> bool:
        """Whether a cell of this method has a teacher."""
        return self.teacher != "none"

    @property
    def precomputes(self) -> bool:
        """Whether the teacher has done its work before the first step."""
        return self.teacher in ("class-embeddings", "image-embeddings")

    @property
    def uses_projection(self) -> bool:
        """Whether the student brings the teacher's embeddings to its own width."""
        return self.has_teacher and not self.classifier and self.projection


_OWN = "kdbench.worker.training.methods"
BUILT_IN: Mapping[str, Method] = {
    "teacher-kd": Method(step=f"{_OWN}:teacher_kd", teacher="step"),
    "embed-kd": Method(step=f"{_OWN}:embed_kd", teacher="class-embeddings"),
    "cached-kd": Method(step=f"{_OWN}:cached_kd", teacher="image-embeddings"),
    "vanilla-kd": Method(step=f"{_OWN}:vanilla_kd", teacher="step", classifier=True),
    "student-only": Method(step=f"{_OWN}:student_only", teacher="none"),
}


def find_method(name: str) -> Method:
    """Look a method up: kdbench's own, or one that an installed package declares."""
    if name in BUILT_IN:
        return BUILT_IN[name]
    plugged = _plugged()
    if name not in plugged:
        raise InputError(f"unknown method {name!r}", hint=suggest_methods(name))
    return _loaded(plugged[name])


def known_methods() -> tuple[str, ...]:
    """List the names of all methods; none is loaded for it."""
    return (*BUILT_IN, *(name for name in _plugged() if name not in BUILT_IN))


def suggest_methods(name: str) -> str:
    """Hint at what an unknown name may have meant."""
    return near_or_all(name, known_methods(), "methods")


@lru_cache(maxsize=1)
def _plugged() -> dict[str, EntryPoint]:
    """Entry points by name; the first distribution on the path wins, as with imports."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        found.setdefault(point.name, point)
    return found


@lru_cache(maxsize=64)
def _loaded(point: EntryPoint) -> Method:
    where = f"entry point {point.name!r} of {GROUP} ({point.value})"
    try:
        validate_name(point.name)
    except ValueError as error:
        raise InputError(str(error), where=where) from None
    try:
        method = point.load()
    except Exception as error:  # a package of somebody else's: whatever it raises
        raise InputError(
            f"cannot load the method: {type(error).__name__}: {first_line(error)}",
            where=where,
            hint="mend or remove the package that declares it",
        ) from error
    if not isinstance(method, Method):
        raise InputError(f"expected a kdbench.plugin.Method, found {method!r}", where=where)
    return method


def plugin_module(name: str) -> str | None:
    """Top-level module whose files define a plugged-in method's step; None for kdbench's own."""
    if name in BUILT_IN:
        return None
    return find_method(name).step.partition(":")[0].partition(".")[0]
