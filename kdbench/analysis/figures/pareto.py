"""Accuracy against cost: memory, time and energy, with the cells that no other beats on both."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from kdbench.analysis.aggregate import CellGroup
from kdbench.analysis.figures import style
from kdbench.analysis.figures.page import Graph, Page
from kdbench.analysis.figures.scatter import Point, draw_scatter, plan_scatter
from kdbench.analysis.figures.series import Look, distinguishing_settings, looks, variant_name
from kdbench.analysis.figures.sheet import (
    Sheet,
    block_title,
    excess,
    headline,
    provenance,
    seed_notes,
)
from kdbench.analysis.metrics import METRICS
from kdbench.analysis.notes import footnotes, sentences, source_note, warning_notes
from kdbench.common.errors import printable
from kdbench.common.stats import MIN_PROCESSES
from kdbench.common.units import Unit, axis_unit

_MOST_POINTS = 60
_PANEL, _ALONE = (3.2, 2.7), (4.6, 3.2)


@dataclass(frozen=True)
class Cost:
    """What a panel sets accuracy against, in base units.

    `metric` names the one whose source is named, `parts` all that are in it.
    """

    title: str
    note: str
    unit: Unit
    metric: str | None
    parts: tuple[str, ...]
    of: Callable[[CellGroup], float | None]


def training_seconds(group: CellGroup) -> float | None:
    """Return what the whole training took: its epochs and what came once before, in seconds.

    A method that precomputes nothing has null there, which adds nothing.
    """
    epoch = group.value("epoch_time")
    if epoch is None:
        return None
    return epoch * int(group.settings["epochs"]) + (group.value("precompute_time") or 0.0)


def training_joules(group: CellGroup) -> float | None:
    """Return the energy of all training steps, in joules; None where any part is unknown."""
    step = group.value("energy")
    if step is None or group.steps_per_epoch is None:
        return None
    return step * group.steps_per_epoch * int(group.settings["epochs"])


COSTS = (
    Cost(
        "Peak allocated in a step",
        "activations and all: where a card runs out",
        "bytes",
        "allocated",
        ("allocated",),
        lambda group: group.value("allocated"),
    ),
    Cost(
        "Time of the training",
        "epochs × median epoch, and the precompute",
        "seconds",
        None,
        ("epoch_time", "precompute_time"),
        training_seconds,
    ),
    Cost(
        "Energy of the training",
        "of the card, over the steps; without the precompute",
        "joules",
        "energy",
        ("energy",),
        training_joules,
    ),
)


def plan(sheet: Sheet) -> Page | str:
    """Lay the figure out; where these results cannot give it, say why."""
    trained = [group for group in sheet.groups if "accuracy" in group.estimates]
    if len(trained) < 2:
        return "fewer than two cells were trained"
    if too_many := excess(len(trained), _MOST_POINTS):
        return too_many
    drawn = [cost for cost in COSTS if _known(trained, cost)]
    if not drawn:
        return "no cost of two trained cells is known"
    names = _labels(trained)
    for numbered in (False, True):
        page = _page(sheet, trained, drawn, names, numbered=numbered)
        if page is not None:
            return page
    raise RuntimeError("numbers have a place wherever they fall")


def _known(groups: Sequence[CellGroup], cost: Cost) -> list[CellGroup]:
    known = [group for group in groups if cost.of(group) is not None]
    return known if len(known) > 1 else []


def _labels(groups: Sequence[CellGroup]) -> dict[int, str]:
    """Name each cell by what it differs in, on two lines at most."""
    kinds = {id(group): block_title(group) for group in groups}
    several = len(set(kinds.values())) > 1
    names = distinguishing_settings(groups)
    labels = {}
    for group in groups:
        second = (kinds[id(group)] if several else "", variant_name(group, names))
        lines = (style.method_name(group.method), ", ".join(filter(None, second)))
        labels[id(group)] = "\n".join(filter(None, lines))
    return labels


def _page(
    sheet: Sheet,
    trained: Sequence[CellGroup],
    drawn: Sequence[Cost],
    names: dict[int, str],
    *,
    numbered: bool,
) -> Page | None:
    """Plan the page with names at the points, or numbers; None where the names do not fit."""
    chosen = looks(sheet, trained)
    numbers = {id(group): str(index) for index, group in enumerate(trained, 1)}
    texts = numbers if numbered else names
    panel = _PANEL if len(drawn) > 1 else _ALONE
    datasets = list(dict.fromkeys(group.settings["dataset"] for group in trained))
    graphs = []
    for dataset in datasets:
        of_dataset = f", {printable(dataset)}" if len(datasets) > 1 else ""
        for cost in drawn:
            groups = [g for g in _known(trained, cost) if g.settings["dataset"] == dataset]
            if not groups:
                continue
            graph = _graph(cost, groups, texts, chosen, panel, strict=not numbered)
            if graph is None:
                return None
            graphs.append(replace(graph, title=graph.title + of_dataset))
    legend = [
        replace(chosen[id(g)], label=f"{numbers[id(g)]}  " + names[id(g)].replace("\n", ", "))
        for g in trained
    ]
    return Page(
        title=headline(sheet, "What accuracy costs"),
        legend=legend if numbered else [],
        graphs=graphs,
        caption=_caption(sheet, trained, drawn),
        columns=len(drawn),
        table=numbered,
        panel=panel,
        handles="points",
    )


def _graph(
    cost: Cost,
    groups: Sequence[CellGroup],
    texts: Mapping[int, str],
    chosen: Mapping[int, Look],
    panel: tuple[float, float],
    *,
    strict: bool,
) -> Graph | None:
    values = [cost.of(group) or 0.0 for group in groups]
    factor, unit = axis_unit(values, cost.unit)
    points = []
    for group, value in zip(groups, values, strict=True):
        low, high = _bar(group)
        accuracy = 100 * group.estimates["accuracy"].value
        look = chosen[id(group)]
        faint = bool(_marked(group, cost))
        points.append(Point(value / factor, accuracy, low, high, look, texts[id(group)], faint))
    scatter = plan_scatter(points, panel, strict=strict)
    if scatter is None:
        return None

    notes = [cost.note]
    if cost.metric and (source := source_note(groups, METRICS[cost.metric])):
        notes.append(f"source: {source}")
    return Graph(cost.title, tuple(notes), unit, "test accuracy, %", partial(draw_scatter, scatter))


def _marked(group: CellGroup, cost: Cost) -> list[str]:
    """List the parts of a cell's cost that nothing is to be concluded from."""
    estimates = [(part, group.estimates.get(part)) for part in cost.parts]
    return [part for part, estimate in estimates if estimate is not None and estimate.marks]


def _bar(group: CellGroup) -> tuple[float, float]:
    """Return the ends of a point's bar in percent: the interval, or the range of a few seeds."""
    ends = group.estimates["accuracy"].interval or (min(group.accuracies), max(group.accuracies))
    return 100 * ends[0], 100 * ends[1]


def _caption(sheet: Sheet, trained: Sequence[CellGroup], drawn: Sequence[Cost]) -> list[str]:
    lines = [provenance(sheet, trained)]
    lines.append(
        "Filled, on the dashed line: no other cell costs at most as much and is at least as good; "
        "the line goes by the means, whatever their spread."
    )
    if any(_marked(group, cost) for group in trained for cost in drawn):
        lines.append(
            "Pale: its runs were all contended, or lie further apart than processes that measure "
            "the same; not on the line."
        )
    lines.append(_seed_note(trained))
    for cost in drawn:
        without = [group for group in trained if cost.of(group) is None]
        if without:
            lines.append(f"{cost.title}: not known for {', '.join(g.name for g in without)}.")
    marks = footnotes(trained, (), trained=True) + warning_notes(trained)
    return lines + sentences(marks)


def _seed_note(trained: Sequence[CellGroup]) -> str:
    counts = {len(group.accuracies) for group in trained}
    if counts == {1}:
        return "Test accuracy after the last epoch, of one seed each."
    many = ("bars", f" from {MIN_PROCESSES} seeds on")
    few = ("bars", f" under {MIN_PROCESSES} seeds", "from the lowest to the highest seed")
    notes = seed_notes(counts, "point", many, few)
    return f"Test accuracy after the last epoch, {'; '.join(notes)}."
