"""Figure 5: accuracy against alpha2, the weight of the distillation loss."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from matplotlib.axes import Axes

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.figures import style
from kdbench.analysis.figures.page import Graph, Page, side_by_side
from kdbench.analysis.figures.series import Block, Look, blocks, looks
from kdbench.analysis.figures.sheet import Sheet, excess, headline, provenance, seed_notes
from kdbench.analysis.notes import footnotes, sentences
from kdbench.common.stats import MIN_PROCESSES

_MOST_LINES = 16
_LEVEL = (0, (4, 2))
_SWEPT = ("alpha2", "alpha1")


def plan(sheet: Sheet) -> Page | str:
    """Lay the figure out; where these results cannot give it, say why."""
    drawn = _drawn(sheet)
    if not any(group.settings["teacher"] for group in drawn):
        return "no method was trained with two values of alpha2"
    chosen = looks(sheet, drawn, apart_from=_SWEPT)
    most = max(len(_lines(block, chosen)) for block in blocks(drawn))
    if too_many := excess(most, _MOST_LINES, "lines are more than a panel shows"):
        return too_many
    graphs = [_graph(block, chosen) for block in blocks(drawn)]
    return Page(
        title=headline(sheet, "Accuracy against the weight of the distillation loss"),
        legend=list(dict.fromkeys(_handle(group, chosen[id(group)]) for group in drawn)),
        graphs=graphs,
        caption=_caption(sheet, drawn),
        columns=side_by_side(len(graphs)),
        panel=(4.6, 2.8) if len(graphs) == 1 else (2.8, 2.2),
        handles="both",
    )


def _drawn(sheet: Sheet) -> list[CellGroup]:
    """List trained cells of the blocks in which some line has two values of alpha2."""
    trained = [group for group in sheet.groups if "accuracy" in group.estimates]
    chosen = looks(sheet, trained, apart_from=_SWEPT)
    kept: set[int] = set()
    for block in blocks(trained):
        lines = _lines(block, chosen).values()
        if any(len({g.settings["alpha2"] for g in line}) > 1 for line in lines):
            kept |= {id(group) for group in block.groups}
    return [group for group in trained if id(group) in kept]


def _lines(block: Block, chosen: Mapping[int, Look]) -> dict[Look, list[CellGroup]]:
    """Put the cells of a block together by line, in the order of alpha2."""
    lines: dict[Look, list[CellGroup]] = {}
    for group in sorted(block.groups, key=_alpha2):
        # Without a teacher there is no distillation to weigh: that is a level, not a line.
        if group.settings["teacher"] is not None:
            lines.setdefault(chosen[id(group)], []).append(group)
    return lines


def _alpha2(group: CellGroup) -> float:
    return float(group.settings["alpha2"])


def _graph(block: Block, chosen: Mapping[int, Look]) -> Graph:
    def painted(axes: Axes, _size: tuple[float, float]) -> None:
        for group in block.groups:
            if group.settings["teacher"] is None:
                _draw_level(axes, group, chosen[id(group)])
        lines = _lines(block, chosen)
        values = [_alpha2(g) for line in lines.values() for g in line]
        span = (max(values) - min(values)) or 1.0
        for index, (look, line) in enumerate(lines.items()):
            # A little aside, so that whiskers at the same alpha2 stand apart.
            aside = (index - (len(lines) - 1) / 2) * 0.008 * span
            _draw_line(axes, line, look, aside)
        axes.xaxis.set_major_locator(style.ticks(6))
        axes.margins(x=0.05, y=0.1)
        style.percent_axis(axes)

    return Graph(block.title, (), "α₂, weight of the distillation loss", "accuracy, %", painted)


def _draw_line(axes: Axes, line: Sequence[CellGroup], look: Look, aside: float) -> None:
    estimates = [group.estimates["accuracy"] for group in line]
    places = [_alpha2(group) + aside for group in line]
    axes.plot(
        places,
        [100 * estimate.value for estimate in estimates],
        color=look.colour,
        linestyle=look.dashes,
        linewidth=1.5,
        marker=look.marker,
        markersize=5.5,
        markeredgecolor="white",
        markeredgewidth=0.6,
        zorder=3,
        clip_on=False,
    )
    for place, group, estimate in zip(places, line, estimates, strict=True):
        if estimate.interval:
            low, high = (100 * end for end in estimate.interval)
            axes.vlines(place, low, high, color=look.colour, linewidth=1.1)
        else:
            points = [100 * value for value in group.accuracies]
            axes.plot(
                [place] * len(points),
                points,
                linestyle="",
                marker="o",
                markersize=2.4,
                color=look.colour,
                alpha=0.55,
                markeredgewidth=0,
            )


def _handle(group: CellGroup, look: Look) -> Look:
    """Show in the legend what is drawn: a line with points, or a level without any."""
    return look if group.settings["teacher"] else replace(look, marker="", dashes=_LEVEL)


def _draw_level(axes: Axes, group: CellGroup, look: Look) -> None:
    estimate = group.estimates["accuracy"]
    axes.axhline(100 * estimate.value, color=look.colour, linestyle=_LEVEL, linewidth=1.2)
    if ends := estimate.interval:
        axes.axhspan(100 * ends[0], 100 * ends[1], color=look.colour, alpha=0.12, linewidth=0)


def _caption(sheet: Sheet, drawn: Sequence[CellGroup]) -> list[str]:
    lines = [provenance(sheet, drawn), _seed_note(drawn), _alpha1_note(drawn)]
    if any(group.settings["teacher"] is None for group in drawn):
        lines.append("Horizontal lines: methods without a teacher, at their own accuracy.")
    return lines + sentences(footnotes(drawn, (), trained=True))


def _seed_note(drawn: Sequence[CellGroup]) -> str:
    counts = {group.estimates["accuracy"].count for group in drawn}
    if counts == {1}:
        return "Test accuracy after the last epoch, one seed each."
    many = ("whiskers", f" from {MIN_PROCESSES} seeds on")
    few = ("small dots", f", under {MIN_PROCESSES} seeds", "single seeds")
    notes = seed_notes(counts, "point", many, few, fewest=1)
    return f"Test accuracy after the last epoch, {'; '.join(notes)}."


def _alpha1_note(drawn: Sequence[CellGroup]) -> str:
    swept = [group for group in drawn if group.settings["teacher"] is not None]
    others = [
        group
        for group in swept
        if not math.isclose(float(group.settings["alpha1"]), 1 - _alpha2(group), abs_tol=1e-9)
    ]
    if not others:
        return "α₁ = 1 − α₂ in every cell drawn, as in the paper's sweep."
    found = ", ".join(f"{v:g}" for v in sorted({float(g.settings["alpha1"]) for g in others}))
    return (
        f"Not the paper's sweep: α₁ is not 1 − α₂ in {len(others)} of {len(swept)} cells "
        f"(there it is {found})."
    )
