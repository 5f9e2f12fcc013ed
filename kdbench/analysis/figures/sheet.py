"""What a figure is drawn from, and how it names its cells and its source."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.environments import Environment
from kdbench.analysis.figures import style
from kdbench.analysis.metrics import Metric
from kdbench.analysis.results import Results
from kdbench.common.text import fold_label, printable

_LABEL_LETTERS = 26
_TIE = "\N{NO-BREAK SPACE}"


@dataclass(frozen=True, eq=False)
class Sheet:
    """What a figure is drawn from: never more than one matrix and one environment."""

    matrix: str
    environment: Environment
    results: Results  #: the rows
    #: the same, put together by cell, in the order in which they are drawn
    groups: Sequence[CellGroup]
    reference: CellGroup | None  #: the cell that ratios are taken to
    metrics: tuple[Metric, ...] = ()  #: what the user asked for; empty for the figure's own choice

    @property
    def colours(self) -> dict[str, str]:
        """A colour for each of its methods, the same in every figure of the sheet."""
        return style.method_colours(dict.fromkeys(group.method for group in self.groups))


def headline(sheet: Sheet, title: str) -> str:
    """Head a figure: what it shows, of which matrix, and whether anything of it was measured."""
    told = f"{title}: {printable(sheet.matrix)}"
    predicted = sheet.environment.profile is not None
    return f"{told} (predicted, not measured)" if predicted else told


def row_labels(groups: Sequence[CellGroup]) -> list[str]:
    """Name each cell by what it differs in: method, student, size, and what else varies."""
    several = len({group.settings["teacher"] for group in groups} - {None}) > 1
    labels = []
    for group in groups:
        settings = group.settings
        star = "*" if settings["student_inferred"] else ""
        lines = [style.method_name(group.method)]
        # A space that is not folded at: "32 px" stays together.
        size = f"{settings['image_size']}{_TIE}px"
        student = f"{printable(settings['student'])}{star}, {size}"
        lines += fold_label(student, _LABEL_LETTERS)
        if several and settings["teacher"]:
            lines += fold_label(printable(settings["teacher"]), _LABEL_LETTERS)
        # Axes beyond the main ones are in the label as name=value; what tells apart cells of one
        # label stands behind it.
        extra = [part for part in printable(group.label).split("/") if "=" in part]
        extra += [group.name[len(printable(group.label)) :].strip()]
        lines += [line for part in extra if part for line in fold_label(part, _LABEL_LETTERS)]
        labels.append("\n".join(lines))
    return labels


def row_positions(groups: Sequence[CellGroup]) -> list[float]:
    """Place rows from the top, a little apart where the method changes."""
    positions = [0.0]
    for before, after in pairwise(groups):
        positions.append(positions[-1] + (1.0 if before.method == after.method else 1.2))
    return positions


def provenance(sheet: Sheet, groups: Sequence[CellGroup]) -> str:
    """Say where, when and by which revision some cells of a sheet were measured."""
    days = sorted({moment.strftime("%Y-%m-%d") for group in groups for moment in group.started})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    revisions = sorted({revision for group in groups for revision in group.revisions})
    made = f"kdbench {', '.join(revisions)}" if revisions else "kdbench"
    how = " and ".join(sorted({group.made for group in groups})).capitalize()
    line = f"{sheet.environment.description}. {how} {when}, {printable(made)}."
    teachers = {group.settings["teacher"] for group in groups} - {None}
    return f"{line} Teacher: {printable(teachers.pop())}." if len(teachers) == 1 else line
