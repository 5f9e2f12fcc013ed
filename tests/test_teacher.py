"""Teachers: random, from a local checkpoint in the hub's format, and fitted on the spot."""

import json

import pytest
import torch
from transformers import ViTConfig, ViTModel

from kdbench.errors import InputError
from kdbench.worker.events import Events
from kdbench.worker.fit import ensure_fitted
from kdbench.worker.teacher import fitted_path, load_teacher
from tests.models import tiny_run
from tests.test_data import DIGITS

CPU = torch.device("cpu")
FITTED = (*DIGITS, 'teachers.dwarf.weights="fitted"', "teachers.dwarf.fit.epochs=1")


def checkpoint(folder, **changes):
    """Write a tiny ViT of the tiny matrix's shape as transformers itself does."""
    torch.manual_seed(0)
    config = {
        "hidden_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 96,
        "patch_size": 8,
        "image_size": 16,
    } | changes
    model = ViTModel(ViTConfig(**config))
    model.save_pretrained(folder)
    return model


def pretrained(tmp_path, folder):
    return tiny_run(
        tmp_path,
        "embed-kd",
        'teachers.dwarf.weights="pretrained"',
        f'teachers.dwarf.checkpoint="{folder}"',
    ).cell


def test_a_local_checkpoint(tmp_path):
    model = checkpoint(tmp_path / "vit").eval()
    teacher = load_teacher(pretrained(tmp_path, tmp_path / "vit"), device=CPU, cache=tmp_path)
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = model(pixel_values=images).last_hidden_state[:, 0]
    assert torch.equal(teacher(images), expected)
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_features_agree_with_a_float64_reference(tmp_path):
    checkpoint(tmp_path / "vit")
    teacher = load_teacher(pretrained(tmp_path, tmp_path / "vit"), device=CPU, cache=tmp_path)
    images = torch.randn(3, 3, 16, 16)
    features = teacher(images)
    exact = teacher.double()(images.double())
    torch.testing.assert_close(features.double(), exact, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hidden_size": 12, "intermediate_size": 48}, "hidden_size = 24, the checkpoint has 12"),
        ({"num_hidden_layers": 2}, "num_hidden_layers = 1, the checkpoint has 2"),
        ({"image_size": 32}, "image_size = 16, the checkpoint has 32"),
    ],
)
def test_a_checkpoint_of_another_shape(tmp_path, changes, told):
    checkpoint(tmp_path / "vit", **changes)
    with pytest.raises(InputError, match=told):
        load_teacher(pretrained(tmp_path, tmp_path / "vit"), device=CPU, cache=tmp_path)


def test_pickled_weights_are_refused(tmp_path):
    model = checkpoint(tmp_path / "vit")
    (tmp_path / "vit" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "vit" / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_teacher(pretrained(tmp_path, tmp_path / "vit"), device=CPU, cache=tmp_path)


def test_an_absent_checkpoint_says_what_to_fetch(tmp_path):
    with pytest.raises(InputError, match="hf download nobody/nothing"):
        load_teacher(pretrained(tmp_path, "nobody/nothing"), device=CPU, cache=tmp_path)


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
