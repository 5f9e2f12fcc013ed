"""What a figure is drawn from, and how it names its cells and its source."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import pairwise

from matplotlib.axes import Axes

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.environments import Environment
from kdbench.analysis.figures import style
from kdbench.analysis.metrics import Metric
from kdbench.analysis.results import Results
from kdbench.common.errors import printable
from kdbench.common.stats import MIN_PROCESSES
from kdbench.common.text import fold_label

_LABEL_LETTERS = 26
TIE = "\N{NO-BREAK SPACE}"  # no line is broken there: "32 px" stays together


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
    predicted = sheet.environment.profile is not None
    return f"{title}: {printable(sheet.matrix)}" + " (predicted, not measured)" * predicted


def excess(count: int, most: int, what: str = "cells are more than fit") -> str | None:
    """Refuse what is more than can be drawn; None where it is not."""
    return f"{count} {what} ({most}): narrow with --only" if count > most else None


def block_title(group: CellGroup) -> str:
    """Name a cell's student and image size: `large*, 32 px`."""
    settings = group.settings
    star = "*" if settings["student_inferred"] else ""
    return f"{printable(settings['student'])}{star}, {settings['image_size']}{TIE}px"


class Rows:
    """A row for each cell, named on its left; none is lower than `least` inches."""

    def __init__(self, groups: Sequence[CellGroup], *, least: float, padding: float) -> None:
        self.labels = _row_labels(groups)
        self.positions = _row_positions(groups)  #: from the top, in rows
        tallest = max(label.count("\n") + 1 for label in self.labels)
        #: of a row, and of all, in inches
        self.height = max(least, tallest * style.line_height(style.BODY) + padding)
        self.total = self.height * (self.positions[-1] + 1)
        #: room that the names need, in inches
        self.names = max(style.text_width(label, style.BODY) for label in self.labels) + 0.12

    def prepare(self, axes: Axes, *, named: bool = True) -> None:
        """Give axes the rows: of their lines the vertical grid and the zero line are left."""
        axes.grid(visible=False, axis="y")
        axes.spines["bottom"].set_visible(False)
        axes.set_ylim(self.positions[-1] + 0.5, -0.5)
        axes.set_yticks(self.positions, self.labels if named else [""] * len(self.labels))
        for label in axes.get_yticklabels():
            label.set(fontsize=style.BODY, linespacing=1.25, **style.PLAIN)


def _row_labels(groups: Sequence[CellGroup]) -> list[str]:
    """Name each cell by what it differs in: method, student, size, and what else varies."""
    several = len({group.settings["teacher"] for group in groups} - {None}) > 1
    labels = []
    for group in groups:
        lines = [style.method_name(group.method), *fold_label(block_title(group), _LABEL_LETTERS)]
        if several and (teacher := group.settings["teacher"]):
            lines += fold_label(printable(teacher), _LABEL_LETTERS)
        # Axes beyond the main ones are in the label as name=value; what sets apart cells of one
        # label stands behind it.
        extra = [part for part in printable(group.label).split("/") if "=" in part]
        extra += [group.name[len(printable(group.label)) :].strip()]
        lines += [line for part in extra if part for line in fold_label(part, _LABEL_LETTERS)]
        labels.append("\n".join(lines))
    return labels


def _row_positions(groups: Sequence[CellGroup]) -> list[float]:
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


def seed_notes(
    counts: Collection[int],
    per: str,
    many: tuple[str, str],
    few: tuple[str, str, str],
    *,
    fewest: int = 2,
) -> list[str]:
    """Say over how many seeds means are, and what shows their spread.

    `many` and `few` hold the mark, and words for the seeds it is for, where there are both kinds:
    from `MIN_PROCESSES` seeds on, and from `fewest` on; `few` also holds what the mark means.
    """
    least, most = min(counts), max(counts)
    both = least < MIN_PROCESSES <= most
    span = " to ".join(str(count) for count in dict.fromkeys((least, most)))
    notes = [f"mean over seeds ({span} per {per})"]
    if most >= MIN_PROCESSES:
        mark, seeds = many
        notes.append(f"{mark}{seeds if both else ''}: 95 % interval of that mean")
    if any(fewest <= count < MIN_PROCESSES for count in counts):
        mark, seeds, meaning = few
        notes.append(f"{mark}{seeds if both else ''}: {meaning}")
    return notes
