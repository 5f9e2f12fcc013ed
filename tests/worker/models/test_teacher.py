"""Teachers that are fitted on the spot."""

import json

import torch

from kdbench.worker.events import Events
from kdbench.worker.models.fit_teacher import ensure_fitted
from kdbench.worker.models.teacher import fitted_path, load_teacher
from tests.support.models import tiny_run
from tests.worker.data.test_data import DIGITS

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
