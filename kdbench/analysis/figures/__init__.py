"""The figures by name, each with what it needs from the results."""

from collections.abc import Callable
from dataclasses import dataclass

import kdbench.analysis.figures.backend  # noqa: F401 - before anything else imports matplotlib
from kdbench.analysis.figures import breakeven, curves, fig4, fig5, memory, pareto, timeline
from kdbench.analysis.figures.page import Page
from kdbench.analysis.figures.sheet import Sheet


@dataclass(frozen=True)
class FigureKind:
    """A figure that can be drawn."""

    name: str  #: what the command line calls it, and its file
    summary: str  #: what it shows, in a line
    plan: Callable[[Sheet], Page | str]  #: lays it out; says why a sheet cannot give it
    aliases: tuple[str, ...] = ()  #: other names that the command line takes for it
    takes_metrics: bool = False  #: whether it shows the metrics that the user chose


FIGURES: dict[str, FigureKind] = {
    kind.name: kind
    for kind in (
        FigureKind(
            "curves",
            "training and validation curves, a band over seeds",
            curves.plan,
            aliases=("fig2", "fig3"),
        ),
        FigureKind(
            "fig4",
            "memory, accuracy and time per epoch by method, student and image size",
            fig4.plan,
            takes_metrics=True,
        ),
        FigureKind("fig5", "accuracy against alpha2", fig5.plan),
        FigureKind(
            "breakeven",
            "cumulative time against epochs, and when a precompute has paid",
            breakeven.plan,
        ),
        FigureKind("pareto", "accuracy against memory, time and energy", pareto.plan),
        FigureKind("memory", "what a step's memory is for at its peak", memory.plan),
        FigureKind("timeline", "live bytes over the course of a step", timeline.plan),
    )
}
