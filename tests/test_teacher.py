"""Teachers that are fitted on the spot, and the class embeddings of any."""

import json

import pytest
import torch

from kdbench.errors import InputError
from kdbench.worker.augment import prepare
from kdbench.worker.data import load_data
from kdbench.worker.embeddings import class_embeddings
from kdbench.worker.events import Events
from kdbench.worker.fit import ensure_fitted
from kdbench.worker.probes import Probes
from kdbench.worker.teacher import fitted_path, load_teacher
from tests.models import tiny_run
from tests.test_data import DIGITS

CPU = torch.device("cpu")
FITTED = (*DIGITS, 'teachers.dwarf.weights="fitted"', "teachers.dwarf.fit.epochs=1")


def fit(tmp_path, cell, name="events.jsonl"):
    ensure_fitted(cell, device=CPU, cache=tmp_path / "cache", events=Events(tmp_path / name))
    events = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
    return next(event for event in events if event["event"] == "teacher")


def test_a_teacher_is_fitted_once(tmp_path):
    cell = tiny_run(tmp_path, "embed-kd", *FITTED).cell
    first = fit(tmp_path, cell, "first")
    assert first["cached"] is False
    assert first["accuracy"] > 0.15, "better than chance after one epoch"
    assert fit(tmp_path, cell, "second")["cached"] is True
    teacher = load_teacher(cell, device=CPU, cache=tmp_path / "cache")
    assert teacher(torch.randn(2, 3, 16, 16)).shape == (2, 24)


def test_a_damaged_cache_is_fitted_anew(tmp_path):
    cell = tiny_run(tmp_path, "embed-kd", *FITTED).cell
    fit(tmp_path, cell, "first")
    path = fitted_path(cell, tmp_path / "cache")
    path.write_bytes(path.read_bytes()[:100])
    assert fit(tmp_path, cell, "second")["cached"] is False
    load_teacher(cell, device=CPU, cache=tmp_path / "cache")


def test_what_a_teacher_is_fitted_from_is_in_its_name(tmp_path):
    names = {
        fitted_path(tiny_run(tmp_path, "embed-kd", *FITTED, change).cell, tmp_path).name
        for change in (
            "repeats=1",
            "teachers.dwarf.depth=2",
            "teachers.dwarf.fit.epochs=2",
            "data.train_images=1000",
            "teachers.dwarf.fit.seed=1",
        )
    }
    assert len(names) == 5


def test_how_the_images_are_held_is_not_in_its_name(tmp_path):
    def name(*change):
        return fitted_path(tiny_run(tmp_path, "embed-kd", *FITTED, *change).cell, tmp_path).name

    assert name() == name('data.storage="device"') == name("data.workers=1")


def test_class_embeddings_are_means_over_exactly_so_many_images(tmp_path):
    cell = tiny_run(tmp_path, "embed-kd", *DIGITS, "training.images_per_class=7").cell
    data = load_data(cell, device=CPU)
    seen = []

    def teacher(images):
        seen.append(images)
        return images.flatten(1)[:, :24]

    teacher_module = torch.nn.Module()
    teacher_module.forward = teacher
    done = class_embeddings(
        cell, data, teacher_module, budget=None, device=CPU, probes=Probes(CPU), seed=3
    )
    images = torch.cat(seen[1:])  # the first batch warms up
    assert (len(images), done.batches, done.kind) == (70, 9, "measured")
    # The reference takes the images that the teacher saw, finds each in the data set by its
    # pixels, and averages by class in float64.
    whole = prepare(data.train.pixels, 16).flatten(1)
    rows = [int((whole == image.flatten()).all(dim=1).nonzero()[0]) for image in images]
    labels = data.train.labels[rows]
    assert torch.bincount(labels).tolist() == [7] * 10
    for number in range(10):
        mean = whole[[row for row, label in zip(rows, labels, strict=True) if label == number]]
        torch.testing.assert_close(
            done.embeddings[number].double(),
            mean.double()[:, :24].mean(dim=0),
            rtol=1e-5,
            atol=1e-6,
        )


def test_a_class_without_images_is_told(tmp_path):
    cell = tiny_run(tmp_path, "embed-kd", *DIGITS).cell
    data = load_data(cell, device=CPU)
    kept = data.train.labels != 4
    short = data.train._replace(pixels=data.train.pixels[kept], labels=data.train.labels[kept])
    with pytest.raises(InputError, match="class 4 has no training image"):
        class_embeddings(
            cell,
            type(data)(short, data.test, len(short.labels)),
            torch.nn.Identity(),
            budget=None,
            device=CPU,
            probes=Probes(CPU),
            seed=0,
        )
