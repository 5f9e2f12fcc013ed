"""How every figure looks: colours, fonts, and text that is measured before it is placed.

Figures are drawn on an Agg canvas of their own; pyplot's global state is left alone.
"""

import textwrap
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import matplotlib.style
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, get_font_names
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator

from kdbench.common.errors import printable

# Okabe and Ito's palette: told apart with any colour vision, and in grey by its lightness.
COLOURS = {
    "teacher-kd": "#D55E00",
    "vanilla-kd": "#E69F00",
    "cached-kd": "#CC79A7",
    "embed-kd": "#0072B2",
    "student-only": "#009E73",
}
# For methods of plug-ins: some of Tol's, and what is left of that palette.
_SPARE_COLOURS = ("#882255", "#999933", "#56B4E9", "#332288", "#117733")
OTHER_COLOUR = "#999999"
NAMES = {
    "teacher-kd": "Teacher-KD",
    "vanilla-kd": "Vanilla KD",
    "cached-kd": "Cached-KD",
    "embed-kd": "Embed-KD",
    "student-only": "Student only",
}
# Of a step's memory; what stands beside another in a stack differs in lightness too.
CATEGORY_COLOURS = {
    "parameters": "#0072B2",
    "optimizer_state": "#56B4E9",
    "teacher": "#D55E00",
    "inputs": "#009E73",
    "gradients": "#CC79A7",
    "activations": "#F0C54A",
    "workspace": "#8C8C8C",
    "other": "#333333",
}
GREEK = {"alpha1": "α₁", "alpha2": "α₂"}
INK, FAINT, GRID = "#222222", "#666666", "#DDDDDD"
TITLE, PANEL, BODY, SMALL = 12.0, 10.0, 8.5, 7.5
# A name is never read as mathematics: `$` may be in it.
PLAIN: dict[str, Any] = {"parse_math": False}

_FONT = "DejaVu Sans"  # bundled with matplotlib: the same on every machine
# For letters that it lacks, those of these that are installed.
_OTHER_FONTS = (
    *(f"Noto Sans CJK {region}" for region in ("SC", "JP", "KR", "TC")),
    *("Source Han Sans", "WenQuanYi Zen Hei", "Droid Sans Fallback", "Hiragino Sans"),
    *("PingFang SC", "Arial Unicode MS", "Noto Emoji", "Symbola"),
)

_RC = {
    "font.size": BODY,
    "hatch.linewidth": 0.6,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": INK,
    "pdf.fonttype": 42,
    "svg.hashsalt": "kdbench",  # the same ids in every file of the same results
    "text.parse_math": False,  # a name is never read as mathematics: `$` may be in it
}


@contextmanager
def drawing() -> Iterator[None]:
    """Draw and save in the house style, whatever the user's matplotlibrc says."""
    installed = set(get_font_names())
    fonts = [_FONT, *(name for name in _OTHER_FONTS if name in installed)]
    theme: Any = {**sns.axes_style("whitegrid"), **_RC, "font.family": fonts}
    with mpl.style.context("default"), mpl.rc_context(theme), warnings.catch_warnings():
        # boxes stand for letters that no font has, which is seen
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)
        yield


def method_name(method: str) -> str:
    """Write a method's name as figures do."""
    return NAMES.get(method, printable(method))


def method_colours(methods: Iterable[str]) -> dict[str, str]:
    """Choose a colour per method, in the order given; grey once a page has run out of them."""
    wanted = list(methods)
    others = (method for method in sorted(wanted) if method not in COLOURS)
    spare = dict(zip(others, _SPARE_COLOURS, strict=False))
    return {method: COLOURS.get(method) or spare.get(method, OTHER_COLOUR) for method in wanted}


def shade(colour: str, amount: float) -> str:
    """Mix a colour with white: 0 leaves it, 1 is white."""
    red, green, blue = (channel + (1 - channel) * amount for channel in to_rgb(colour))
    return str(to_hex((red, green, blue)))


def ink_on(colour: str) -> str:
    """Choose white or dark text for a background, by its lightness (ITU-R BT.709 weights)."""
    red, green, blue = to_rgb(colour)
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5 else INK


def filling(colour: str, hatch: bool = False) -> dict[str, Any]:
    """Properties of an area of a colour, or of one that is hatched in it."""
    if hatch:
        return {"facecolor": "white", "edgecolor": colour, "hatch": "//////", "linewidth": 0.6}
    return {"facecolor": colour, "edgecolor": "none", "hatch": None, "linewidth": 0}


def new_figure(width: float, height: float) -> Figure:
    """Make a figure of so many inches with an Agg canvas."""
    figure = Figure(figsize=(width, height), facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def text_width(text: str, size: float) -> float:
    """Measure the longest line of a text, in inches."""
    font = FontProperties(size=size)
    return max(
        text_to_path.get_text_width_height_descent(line, font, ismath=False)[0] / 72
        for line in text.split("\n")
    )


def line_height(size: float) -> float:
    """Height of a line of text with its spacing, in inches."""
    return size * 1.35 / 72


def wrapped(paragraphs: Sequence[str], size: float, width: float) -> list[str]:
    """Break paragraphs into lines that fit `width` inches at a font size."""
    lines = []
    for paragraph in paragraphs:
        # Start from the average letter and narrow until the measured text fits.
        columns = max(12, int(width * 72 / (size * 0.45)))
        broken = textwrap.wrap(paragraph, columns) or [""]
        while columns > 12 and max(text_width(line, size) for line in broken) > width:
            columns -= 2
            broken = textwrap.wrap(paragraph, columns)
        lines += broken
    return lines


def write_lines(
    figure: Figure,
    lines: Sequence[str],
    *,
    left: float,
    top: float,
    size: float,
    colour: str = INK,
    weight: str = "normal",
) -> None:
    """Write lines downwards from a point given in inches from the left and the bottom."""
    width, height = figure.get_size_inches()
    for index, line in enumerate(lines):
        x, y = left / width, (top - index * line_height(size)) / height
        figure.text(x, y, line, fontsize=size, color=colour, weight=weight, va="top", **PLAIN)


def write_behind(
    axes: Axes,
    text: str,
    end: tuple[float, float],
    *,
    points: int = 3,
    size: float = BODY,
    colour: str = INK,
) -> None:
    """Write behind the end of a bar, so many points from it."""
    axes.annotate(
        text,
        end,
        xytext=(points, 0),
        textcoords="offset points",
        va="center",
        fontsize=size,
        color=colour,
        annotation_clip=False,
        **PLAIN,
    )


def percent_axis(axes: Axes) -> None:
    """End the vertical axis of an accuracy at 0 and 100 %: there is none beyond."""
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, 0.0), min(high, 100.0))


def graph_axes(axes: Axes, *, across: str, up: str) -> None:
    """Make axes for lines and points: a grid both ways, two spines, and the axes' names."""
    axes.set_axisbelow(True)
    axes.grid(visible=True)
    # Lower, so that the two zeros at the origin stand apart.
    axes.tick_params(axis="x", labelsize=SMALL, length=0, pad=6)
    axes.tick_params(axis="y", labelsize=SMALL, length=0, pad=3)
    axes.set_xlabel(across, fontsize=SMALL, color=FAINT, labelpad=3, **PLAIN)
    axes.set_ylabel(up, fontsize=SMALL, color=FAINT, labelpad=3, **PLAIN)
    for name, spine in axes.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(FAINT)
    axes.yaxis.set_major_locator(ticks(5))


def ticks(most: int, *, whole: bool = False) -> MaxNLocator:
    """Choose round numbers for an axis, at most so many."""
    steps = [1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10]
    return MaxNLocator(nbins=most, steps=steps, integer=whole)
