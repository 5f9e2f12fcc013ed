"""The figures by name, each with what it needs from the results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import kdbench.analysis.figures.backend  # noqa: F401 - before anything else imports matplotlib
from kdbench.analysis.figures import breakeven, curves, fig4, fig5, memory, pareto, timeline
from kdbench.analysis.figures.sheet import Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class FigureKind:
    """A figure that can be drawn."""

    name: str  #: what the command line calls it, and its file
    summary: str  #: what it shows, in a line
    refusal: Callable[[Sheet], str | None]  #: says why a sheet cannot give it; None where it can
    draw: Callable[[Sheet], Figure]  #: draws it
    aliases: tuple[str, ...] = ()  #: other names that the command line takes for it
    takes_metrics: bool = False  #: whether it shows the metrics that the user chose


FIGURES: dict[str, FigureKind] = {
    kind.name: kind
    for kind in (
        FigureKind(
            "curves",
            "training and validation curves, a band over seeds",
            curves.refusal,
            curves.draw,
            aliases=("fig2", "fig3"),
        ),
        FigureKind(
            "fig4",
            "memory, accuracy and time per epoch by method, student and image size",
            fig4.refusal,
            fig4.draw,
            takes_metrics=True,
        ),
        FigureKind("fig5", "accuracy against alpha2", fig5.refusal, fig5.draw),
        FigureKind(
            "breakeven",
            "cumulative time against epochs, and when a precompute has paid",
            breakeven.refusal,
            breakeven.draw,
        ),
        FigureKind(
            "pareto", "accuracy against memory, time and energy", pareto.refusal, pareto.draw
        ),
        FigureKind(
            "memory", "what a step's memory is for at its peak", memory.refusal, memory.draw
        ),
        FigureKind(
            "timeline", "live bytes over the course of a step", timeline.refusal, timeline.draw
        ),
    )
}
