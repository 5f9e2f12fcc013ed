"""A teacher that scores the data set's own classes, for the methods that declare so."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from kdbench.common.errors import InputError
from kdbench.spec.cell import digest
from kdbench.worker.data.augment import prepare
from kdbench.worker.data.dataset import load_data
from kdbench.worker.events import Events
from kdbench.worker.models.fit_teacher import ensure_fitted
from kdbench.worker.models.teacher import fitted_path, load_teacher
from tests.support.checkpoints import (
    IMAGES,
    pretrained,
    rewrite_weights,
    write_classifier,
    write_embedder,
)
from tests.support.image_sets import write_pictures
from tests.support.models import tiny_run
from tests.worker.data.test_data import DIGITS

pytestmark = pytest.mark.usefixtures("forked_workers")

CPU = torch.device("cpu")
VANILLA = 'axes.method=["vanilla-kd"]'
FITTED = (*DIGITS, 'teachers.dwarf.weights="fitted"', "teachers.dwarf.fit.epochs=1")


def load(tmp_path, folder, class_names=None, *assignments):
    cell = pretrained(tmp_path, folder, *assignments, method="vanilla-kd")
    return load_teacher(cell, device=CPU, cache=tmp_path, class_names=class_names)


def linear(features, weight, bias):
    """The head in float64."""
    weight, bias = (tensor.detach().double().numpy() for tensor in (weight, bias))
    return features.detach().double().numpy() @ weight.T + bias


def test_pretrained_scores_agree_with_a_float64_reference(tmp_path):
    model = write_classifier(tmp_path / "vit")
    teacher = load(tmp_path, tmp_path / "vit")
    scores = teacher(IMAGES)
    with torch.no_grad():
        tokens = model.vit.double()(pixel_values=IMAGES.double()).last_hidden_state[:, 0]
    exact = linear(tokens, model.classifier.weight, model.classifier.bias)
    assert scores.shape == (3, 5)
    np.testing.assert_allclose(scores.numpy(), exact, rtol=1e-4, atol=1e-5)
    assert exact.std() > 0.1
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert sum(p.numel() for p in teacher.parameters()) == model.num_parameters()


def test_random_scores(tmp_path):
    cell = tiny_run(tmp_path, "vanilla-kd", VANILLA).cell
    first, second = (load_teacher(cell, device=CPU, cache=tmp_path) for _ in range(2))
    scores = first(IMAGES)
    assert scores.shape == (3, 5)
    assert torch.equal(scores, second(IMAGES))
    assert scores.std(dim=-1).min() > 0.01, "no two classes are alike"
    embedder = load_teacher(tiny_run(tmp_path, "embed-kd").cell, device=CPU, cache=tmp_path)
    exact = linear(embedder.double()(IMAGES.double()), first.head.weight, first.head.bias)
    np.testing.assert_allclose(scores.numpy(), exact, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in first.parameters())


def fit(tmp_path, cell):
    path = tmp_path / "events.jsonl"
    ensure_fitted(cell, device=CPU, cache=tmp_path, events=Events(path))
    events = [json.loads(line) for line in path.read_text().splitlines()]
    return [event for event in events if event["event"] == "teacher"][-1]


def test_a_fitted_teacher_keeps_its_head(tmp_path):
    """Its scores are right as often as the fitting saw; the embedder is of the same file."""
    cell = tiny_run(tmp_path, "vanilla-kd", VANILLA, *FITTED).cell
    embedding = tiny_run(tmp_path, "embed-kd", *FITTED).cell
    assert fitted_path(cell, tmp_path) == fitted_path(embedding, tmp_path)
    accuracy = fit(tmp_path, cell)["accuracy"]
    test = load_data(cell, device=CPU).test
    images = prepare(test.pixels, 16)
    classifier, embedder = (
        load_teacher(each, device=CPU, cache=tmp_path) for each in (cell, embedding)
    )
    scores = classifier(images)
    assert float((scores.argmax(dim=-1) == test.labels).double().mean()) == accuracy > 0.15
    head = load_file(fitted_path(cell, tmp_path))
    exact = linear(
        embedder.double()(images.double()), head["classifier.weight"], head["classifier.bias"]
    )
    np.testing.assert_allclose(scores.numpy(), exact, rtol=1e-4, atol=1e-5)
    for teacher in (classifier, embedder):
        assert not any(module.training for module in teacher.modules())
        assert not any(parameter.requires_grad for parameter in teacher.parameters())


def test_files_of_the_layout_without_a_head_are_not_found(tmp_path):
    cell = tiny_run(tmp_path, "embed-kd", *FITTED).cell
    made_from = {
        "teacher": cell.required_teacher.model_dump(exclude={"checkpoint", "revision"}),
        "data": cell.data.model_dump(exclude={"name", "storage", "workers"}),
        "content": [],
    }
    assert fitted_path(cell, tmp_path).stem not in (
        digest(made_from),
        digest({**made_from, "layout": 1}),
    )


def test_a_file_with_other_names_of_weights_is_fitted_anew(tmp_path):
    """As another version of transformers writes it."""
    cell = tiny_run(tmp_path, "embed-kd", *FITTED).cell
    path = fitted_path(cell, tmp_path)
    fit(tmp_path, cell)
    weights = load_file(path)
    save_file({name.replace("layernorm", "norm"): held for name, held in weights.items()}, path)
    with pytest.raises(InputError, match="no fitted teacher in the cache"):
        load_teacher(cell, device=CPU, cache=tmp_path)
    assert fit(tmp_path, cell)["cached"] is False
    assert load_file(path).keys() == weights.keys()


def test_a_checkpoint_without_a_head_is_refused(tmp_path):
    write_embedder(tmp_path / "vit")
    # transformers would give it two classes
    with pytest.raises(
        InputError, match=r"vit: teachers\.dwarf\.checkpoint: expected a classifier, fo"
    ):
        load(tmp_path, tmp_path / "vit", None, "data.classes=2")


@pytest.mark.parametrize("lost", ["classifier.bias", "vit.embeddings.cls_token"])
def test_a_partial_classifier_is_refused(tmp_path, lost):
    write_classifier(tmp_path / "vit")
    rewrite_weights(tmp_path / "vit", lambda weights: weights.pop(lost))
    with pytest.raises(InputError, match=f"partial: it lacks 1 of 24 weights, such as '{lost}'"):
        load(tmp_path, tmp_path / "vit")


def test_other_classes_than_the_data_sets_are_refused(tmp_path):
    write_classifier(tmp_path / "vit", classes=7)
    with pytest.raises(
        InputError,
        match=r"teachers\.dwarf\.checkpoint: expected a classifier of the data set's 5 classes, "
        r"found one of 7; fine-tune one on this data set, or let kdbench fit one: weights = \"f",
    ):
        load(tmp_path, tmp_path / "vit")


NAMES = ("Apple", "aquarium_fish", "Baby Boy", "sea-bear", "crane")


@pytest.mark.parametrize(
    "class_names", [NAMES, ("apple", "Aquarium Fish", "baby-boy", "SEA_BEAR", "crane"), None]
)
def test_the_same_classes_in_other_letters(tmp_path, class_names):
    write_classifier(tmp_path / "vit", NAMES)
    assert load(tmp_path, tmp_path / "vit", class_names)(IMAGES).shape == (3, 5)


def test_a_checkpoint_that_names_no_classes_has_those_of_the_data_set(tmp_path):
    write_classifier(tmp_path / "vit")
    assert load(tmp_path, tmp_path / "vit", NAMES)(IMAGES).shape == (3, 5)


@pytest.mark.parametrize(
    ("class_names", "told"),
    [
        (
            ("Apple", "Baby Boy", "aquarium_fish", "sea-bear", "crane"),
            "class 1 is 'aquarium_fish' in the checkpoint and 'Baby Boy' in the data set; number",
        ),
        ((*NAMES[:4], "cranes"), "class 4 is 'crane' in the checkpoint and 'cranes' in the data"),
        (("app le", *NAMES[1:]), "class 0 is 'Apple' in the checkpoint and 'app le' in the data"),
    ],
)
def test_classes_in_another_order_are_refused(tmp_path, class_names, told):
    write_classifier(tmp_path / "vit", NAMES)
    with pytest.raises(InputError, match=f"the data set's classes in its order, found that {told}"):
        load(tmp_path, tmp_path / "vit", class_names)


def test_an_embedder_may_be_of_any_classes(tmp_path):
    write_classifier(tmp_path / "vit", NAMES)
    cell = pretrained(tmp_path, tmp_path / "vit", "data.classes=3")
    teacher = load_teacher(cell, device=CPU, cache=tmp_path, class_names=("x", "y", "z"))
    assert teacher(IMAGES).shape == (3, 24)


def test_a_run_compares_the_names_of_its_data_set(kdbench, tiny, tmp_path):
    write_classifier(tmp_path / "vit", "abdce")
    write_pictures(tmp_path / "set")
    settings = (
        VANILLA,
        'teachers.dwarf.weights="pretrained"',
        f'teachers.dwarf.checkpoint="{tmp_path / "vit"}"',
        'data.source="datasets"',
        f'data.path="{tmp_path / "set"}"',
        "data.train_images=12",
        "data.test_images=6",
    )
    said = kdbench(
        "run",
        "--matrix",
        tiny,
        "--device",
        "cpu",
        *(word for setting in settings for word in ("--set", setting)),
    )
    assert said.code == 1, said
    (cell,) = pd.read_parquet(tmp_path / "results" / "tiny" / "cells").to_dict("records")
    assert cell["status"] == "failed"
    assert "class 2 is 'd' in the checkpoint and 'c' in the data set" in cell["error"]
