"""Cells and runs for tests that call the worker's parts directly."""

import torch

from kdbench import load_matrix
from kdbench.matrix.file import Matrix
from kdbench.worker.data.dataset import load_data
from kdbench.worker.models.teacher import load_teacher
from kdbench.worker.probes.memory import Probes
from kdbench.worker.training.session import build_session
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
    return session_of(tiny_run(folder, method, *assignments).cell, CPU, folder)


def session_of(cell, device, cache):
    """A training of any cell that is set up, from seed 0, its embeddings all ones."""
    data, teacher, embeddings = load_data(cell, device=device), None, None
    if cell.method_spec.teacher == "step":
        teacher = load_teacher(cell, device=device, cache=cache)
    elif cell.method_spec.teacher == "class-embeddings":
        shape = (cell.data.classes, cell.required_teacher.width)
        embeddings = torch.ones(shape, device=device)
    elif cell.method_spec.teacher == "image-embeddings":
        shape = (cell.data.train_images, 2, cell.required_teacher.width)
        embeddings = torch.ones(shape, device=device)
    return build_session(
        cell,
        device=device,
        seed=0,
        data=data,
        teacher=teacher,
        embeddings=embeddings,
        probes=Probes(device),
    )
