"""The library's `run`: what `kdbench run` does, from a notebook or a script."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.matrix.file import Matrix, load_matrix
from kdbench.runner.device import resolve_device
from kdbench.runner.matrix_runner import RunSummary, run_matrix
from kdbench.runner.progress import Progress

if TYPE_CHECKING:
    from kdbench.analysis.results import Results


@dataclass(frozen=True)
class Run:
    """A finished run: its folder, and how its cells ended."""

    summary: RunSummary

    @property
    def folder(self) -> Path:
        """Where the results are."""
        return self.summary.folder

    @property
    def failed(self) -> list[tuple[str, str]]:
        """Label and status of the cells that did not end well."""
        return self.summary.failed

    @property
    def results(self) -> Results:
        """The results as frames, read from the disk now."""
        from kdbench.analysis.results import load_results  # noqa: PLC0415 - pandas is slow

        return load_results(self.folder)


def run(
    matrix: Matrix | str | Path,
    *,
    out: str | Path = "results",
    device: str = "auto",
    retry: Sequence[str] = (),
    fresh: bool = False,
    progress: Progress | None = None,
) -> Run:
    """Run what is missing of a matrix, each cell in a fresh process.

    Args:
        matrix: from `load_matrix`, or a path to a matrix file.
        out: results root; rows go to `out/<matrix name>/`.
        device: auto, cpu or cuda:N.
        retry: statuses ("failed", "oom", ...) whose cells are run again.
        fresh: run everything again, setting aside what there is.
        progress: receives what happens; None shows nothing.

    Raises:
        InputError: a bad matrix, device or folder; nothing is written then.
    """
    loaded = matrix if isinstance(matrix, Matrix) else load_matrix(matrix)
    resolved = resolve_device(device)
    shown = progress or Progress()
    return Run(
        run_matrix(loaded, out=Path(out), device=resolved, progress=shown, retry=retry, fresh=fresh)
    )
