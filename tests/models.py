"""Cells and runs for tests that call the worker's parts directly."""

from kdbench import load_matrix
from kdbench.matrix import Matrix
from tests.conftest import TINY


def tiny_matrix(folder, *assignments, preset="control") -> Matrix:
    path = folder / "models.toml"
    path.write_text(TINY)
    return load_matrix(path, preset=preset, assignments=assignments)


def tiny_run(folder, method="embed-kd", *assignments):
    """One run of the tiny matrix, by its method."""
    matrix = tiny_matrix(folder, f'axes.method="{method}"', *assignments)
    return next(iter(matrix.runs()))
