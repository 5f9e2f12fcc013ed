"""Draw figures from results and write them, each whole or not at all."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.analysis.aggregate import MODES, group_cells
from kdbench.analysis.figures import FIGURES, FigureKind
from kdbench.analysis.figures.page import Page, draw_page
from kdbench.analysis.figures.sheet import Sheet
from kdbench.analysis.figures.style import drawing
from kdbench.analysis.metrics import find_metrics
from kdbench.analysis.reference import check_reference, find_reference
from kdbench.analysis.results import Results
from kdbench.common.errors import InputError, check_name, os_reason, quoted
from kdbench.common.text import is_name
from kdbench.spec.cell import digest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# No dates in the files: the same results give the same bytes.
_METADATA: Mapping[str, dict[str, Any]] = {
    "png": {},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
FORMATS = tuple(_METADATA)
_DOTS_PER_INCH = 200
# of a picture's longer side; matplotlib's canvas ends at 65,536
_MOST_DOTS = 40_000


def plot(
    results: Results,
    *,
    figure: str | Sequence[str] | None = None,
    metrics: Sequence[str] | None = None,
    formats: Sequence[str] = ("png",),
    out: str | Path | None = None,
    reference: str | None = None,
) -> list[Path]:
    """Draw the figures that the results allow, one per matrix, environment and mode.

    Args:
        results: what to draw from.
        figure: name of the one to draw, or of several; by default every one that the results
            allow.
        metrics: what to show in place of a figure's own choice of memory metrics; only figures
            that show such a choice are then drawn.
        formats: png, svg, pdf.
        out: folder to write into; by default `figures` in each matrix's results.
        reference: label of the cell that ratios are taken to.

    Returns:
        The files, `fig4.png` or, with several in one folder,
        `fig4-<matrix>-<environment id>.png`, with `-trained` or `-profiled` behind it where there
        are both.

    Raises:
        InputError: an unknown figure, metric, format or reference, results that do not allow a
            figure that was named, or a folder that cannot be written to.
    """
    wanted = tuple(find_metrics(metrics or ()))
    named = [figure] if isinstance(figure, str) else list(dict.fromkeys(figure or ()))
    kinds = _kinds(named, with_metrics=bool(wanted))
    _check_formats(formats)
    groups = group_cells(results)
    check_reference(groups, reference)
    sheets = []
    for matrix, environment, rows in results.sheets():
        modes = set(rows.cells["mode"])
        here = [g for g in groups if (g.matrix, g.environment) == (matrix, environment)]
        own = [group for group in here if group.mode in modes]
        sheets.append(Sheet(matrix, environment, rows, own, find_reference(own, reference), wanted))
    with drawing():
        plans = [(kind, sheet, kind.plan(sheet)) for kind in kinds for sheet in sheets]
    allowed = [(kind, sheet, page) for kind, sheet, page in plans if isinstance(page, Page)]
    missing = {kind.name for kind in kinds} - {kind.name for kind, _, _ in allowed}
    if not allowed or (named and missing):
        why = dict.fromkeys(f"{k.name}: {page}" for k, _, page in plans if k.name in missing)
        raise InputError(
            f"these results give no figure ({'; '.join(why)})",
            where="--figure" if named else None,
            hint="kdbench show lists what there is",
        )
    folders = [_folder(results, sheet, out) for _, sheet, _ in allowed]
    shared = Counter((kind.name, at) for (kind, _, _), at in zip(allowed, folders, strict=True))
    places = Counter((kind.name, sheet.matrix, sheet.environment) for kind, sheet, _ in allowed)
    written = []
    for (kind, sheet, page), folder in zip(allowed, folders, strict=True):
        stem = kind.name
        if shared[kind.name, folder] > 1:
            # results may have another matrix's name than any file
            name = sheet.matrix if is_name(sheet.matrix) else digest(sheet.matrix)[:8]
            stem += f"-{name}-{sheet.environment.id}"
            if places[kind.name, sheet.matrix, sheet.environment] > 1:
                stem += f"-{MODES[sheet.groups[0].mode]}"
        with drawing():
            drawn = draw_page(page)
            written += [
                _write(drawn, folder / f"{stem}.{form}", form) for form in dict.fromkeys(formats)
            ]
    return written


def _kinds(named: Sequence[str], *, with_metrics: bool) -> list[FigureKind]:
    """List the kinds to draw, named as the user named them: the files are called so."""
    if not named:
        return [kind for kind in FIGURES.values() if kind.takes_metrics or not with_metrics]
    known = {
        name: replace(kind, name=name)
        for kind in FIGURES.values()
        for name in (kind.name, *kind.aliases)
    }
    for name in named:
        check_name(name, known, "figure", "--figure")
        if with_metrics and not known[name].takes_metrics:
            takers = [kind.name for kind in FIGURES.values() if kind.takes_metrics]
            raise InputError(
                f"the figure {name!r} shows no metrics to choose",
                where="--metric",
                hint=f"those that do: {quoted(takers)}",
            )
    return [known[name] for name in named]


def _check_formats(formats: Sequence[str]) -> None:
    if not formats:
        raise InputError("expected at least one format, found none", where="--format")
    for form in formats:
        check_name(form, FORMATS, "format", "--format")


def _folder(results: Results, sheet: Sheet, out: str | Path | None) -> Path:
    """Choose where figures go; a link in the results may lead anywhere, and is refused."""
    if out is not None:
        return Path(out)
    folder = results.homes[sheet.matrix] / "figures"
    if folder.is_symlink():
        raise InputError(
            "expected a folder for the figures, found a link",
            where=folder,
            hint="name where it leads with --out, if you trust it",
        )
    return folder


def resolution(figure: Figure) -> float:
    """Choose dots per inch: fewer for a figure of very many rows, which no picture could hold."""
    return min(_DOTS_PER_INCH, _MOST_DOTS / float(max(figure.get_size_inches())))


def _write(figure: Figure, path: Path, form: str) -> Path:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.unlink(missing_ok=True)
        with unfinished.open("xb") as file:  # never through a link that lay there
            figure.savefig(file, format=form, dpi=resolution(figure), metadata=_METADATA[form])
        unfinished.replace(path)
    except OSError as error:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise InputError(
            f"cannot write the figure: {os_reason(error)}",
            where=path,
            hint="choose another folder with --out",
        ) from None
    return path
