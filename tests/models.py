"""Cells and runs for tests that call the worker's parts directly."""

import torch

from kdbench import load_matrix
from kdbench.matrix import Matrix
from kdbench.worker.data import load_data
from kdbench.worker.probes import Probes
from kdbench.worker.teacher import load_teacher
from kdbench.worker.training import build_session
from tests.conftest import TINY

CPU = torch.device("cpu")


def tiny_matrix(folder, *assignments, preset="control") -> Matrix:
    path = folder / "models.toml"
    path.write_text(TINY)
    return load_matrix(path, preset=preset, assignments=assignments)


def tiny_run(folder, method="embed-kd", *assignments):
    """One run of the tiny matrix, by its method."""
    matrix = tiny_matrix(folder, f'axes.method="{method}"', *assignments)
    return next(iter(matrix.runs()))


def tiny_session(folder, method, *assignments):
    """A training of the tiny matrix that is set up, from seed 0, its embeddings all ones."""
    cell = tiny_run(folder, method, *assignments).cell
    data, teacher, embeddings = load_data(cell, device=CPU), None, None
    if cell.declared.teacher == "step":
        teacher = load_teacher(cell, device=CPU, cache=folder)
    elif cell.declared.teacher == "class-embeddings":
        embeddings = torch.ones(cell.data.classes, cell.required_teacher.width)
    elif cell.declared.teacher == "image-embeddings":
        embeddings = torch.ones(cell.data.train_images, 2, cell.required_teacher.width)
    return build_session(
        cell,
        device=CPU,
        seed=0,
        data=data,
        teacher=teacher,
        embeddings=embeddings,
        probes=Probes(CPU),
    )
