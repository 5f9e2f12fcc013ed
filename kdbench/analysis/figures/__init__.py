"""The figures by name, each with what it needs from the results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from kdbench.analysis.figures import fig4
from kdbench.analysis.figures.sheet import Sheet


@dataclass(frozen=True)
class FigureKind:
    """A figure that can be drawn.

    Attributes:
        name: what the command line calls it, and its file.
        summary: what it shows, in a line.
        refusal: says why a sheet cannot give it; None where it can.
        draw: draws it.
    """

    name: str
    summary: str
    refusal: Callable[[Sheet], str | None]
    draw: Callable[[Sheet], Figure]


FIGURES: dict[str, FigureKind] = {
    kind.name: kind
    for kind in (
        FigureKind(
            "fig4",
            "memory, accuracy and time per epoch by method, student and image size",
            fig4.refusal,
            fig4.draw,
        ),
    )
}
