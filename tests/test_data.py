"""Images: where they come from, in what order, and what the models see of them."""

import datasets
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdbench.errors import InputError
from kdbench.worker.data import DataSet, Draw, Images, epoch_draws, load_data, make_batch, prepare
from tests.models import tiny_run

CPU = torch.device("cpu")
DIGITS = (
    'data.source="digits"',
    "data.classes=10",
    "data.train_images=1437",
    "data.test_images=360",
    "data.flip=false",
)


def draws(count, batch_size, **options):
    images = Images(torch.zeros(count, 3, 2, 2, dtype=torch.uint8), torch.zeros(count).long())
    data = DataSet(images, images, train_count=count)
    return list(
        epoch_draws(
            data,
            batch_size=batch_size,
            device=CPU,
            **{"flip": True, "seed": 0, "epoch": 0} | options,
        )
    )


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 200), batch_size=st.integers(1, 64))
def test_an_epoch_shows_every_image_at_most_once(count, batch_size):
    drawn = draws(count, batch_size)
    assert len(drawn) == count // batch_size
    seen = [int(index) for draw in drawn for index in draw.indices]
    assert len(seen) == len(set(seen)) == len(drawn) * batch_size
    assert all(0 <= index < count for index in seen)


def test_order_depends_on_seed_and_epoch_alone():
    def order(**options):
        return torch.cat([draw.indices for draw in draws(64, 8, **options)]).tolist()

    assert order() == order()
    assert order(seed=1) != order()
    assert order(epoch=1) != order()
    assert order(flip=False) == order(), "flipping does not change the order"


def test_flips_are_drawn_where_allowed():
    assert {draw.flips for draw in draws(64, 8, flip=False)} == {None}
    flipped = torch.cat([draw.flips for draw in draws(512, 8)])
    assert 0.3 < flipped.float().mean() < 0.7


def test_a_batch_is_gathered_mirrored_and_normalised():
    pixels = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4).to(torch.uint8)
    images = Images(pixels, torch.tensor([5, 7]))
    draw = Draw(torch.tensor([1, 0]), torch.tensor([True, False]))
    batch = make_batch(images, draw, image_size=4, teacher_size=None)
    assert batch.labels.tolist() == [7, 5]
    assert batch.teacher_images is None
    mean = np.array([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
    deviation = np.array([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)
    for row, source, mirrored in ((0, 1, True), (1, 0, False)):
        expected = (pixels[source].double().numpy() / 255 - mean) / deviation
        if mirrored:
            expected = expected[..., ::-1]
        np.testing.assert_allclose(batch.images[row].numpy(), expected, rtol=1e-4, atol=1e-5)


def test_student_and_teacher_see_the_same_images():
    images = Images(torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8), torch.zeros(4).long())
    draw = Draw(torch.arange(4), torch.tensor([True, False, True, False]))
    batch = make_batch(images, draw, image_size=8, teacher_size=16)
    assert batch.teacher_images.shape == (4, 3, 16, 16)
    shrunk = torch.nn.functional.interpolate(batch.teacher_images, (8, 8), mode="area")
    similarity = torch.nn.functional.cosine_similarity(shrunk.flatten(1), batch.images.flatten(1))
    assert (similarity > 0.8).all()


def test_resizing_agrees_with_pillows():
    """Bilinear with antialiasing, as Pillow does it, which rounds to whole pixel values."""
    pixels = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    for size in (8, 224):
        seen = prepare(pixels, size)
        back = seen[0] * torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
        back = (back + torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)) * 255
        picture = Image.fromarray(pixels[0].permute(1, 2, 0).numpy())
        wanted = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR))
        assert np.abs(back.permute(1, 2, 0).numpy() - wanted).max() <= 1.01


def test_digits(tmp_path):
    data = load_data(tiny_run(tmp_path, "embed-kd", *DIGITS).cell, device=CPU)
    assert data.train.pixels.shape == (1437, 3, 8, 8)
    assert data.test.pixels.shape == (360, 3, 8, 8)
    assert data.train.pixels.max() == 255
    assert data.train.labels.unique().tolist() == list(range(10))
    rows = {bytes(row.numpy()) for row in data.train.pixels.flatten(1)}
    shared = sum(bytes(row.numpy()) in rows for row in data.test.pixels.flatten(1))
    assert shared <= 5, "the splits are apart (a few digits are drawn alike)"


def test_digits_of_another_shape_are_refused(tmp_path):
    cell = tiny_run(tmp_path, "embed-kd", *DIGITS, "data.classes=11").cell
    with pytest.raises(InputError, match="10 classes"):
        load_data(cell, device=CPU)


def test_synthetic_images_stand_for_more_than_are_held(tmp_path):
    cell = tiny_run(tmp_path, "embed-kd", "data.train_images=50000").cell
    data = load_data(cell, device=CPU)
    assert len(data.train.labels) == 4 * cell.training.batch_size
    assert data.train_count == 50_000
    drawn = next(epoch_draws(data, batch_size=8, flip=True, seed=0, epoch=0, device=CPU))
    assert make_batch(data.train, drawn, image_size=8, teacher_size=None).images.shape[0] == 8


def write_dataset(folder, *, labels=None, image="img", side=8):
    """Twelve images in the hub's own layout: parquet files named after their split."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 6)):
        pictures = [
            Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8))
            for _ in range(count)
        ]
        table = datasets.Dataset.from_dict(
            {image: pictures, "label": (labels or list(range(5)) * 3)[:count]},
            features=datasets.Features({image: datasets.Image(), "label": datasets.Value("int64")}),
        )
        (folder / "data").mkdir(parents=True, exist_ok=True)
        table.to_parquet(str(folder / "data" / f"{split}-00000-of-00001.parquet"))
    return folder


def loaded(tmp_path, folder, *assignments):
    run = tiny_run(
        tmp_path,
        "embed-kd",
        'data.source="datasets"',
        f'data.path="{folder}"',
        "data.train_images=12",
        "data.test_images=6",
        *assignments,
    )
    return load_data(run.cell, device=CPU)


def test_a_local_data_set_in_the_hubs_layout(tmp_path):
    folder = write_dataset(tmp_path / "set")
    data = loaded(tmp_path, folder)
    generator = np.random.default_rng(0)
    first = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    assert np.array_equal(data.train.pixels[0].permute(1, 2, 0).numpy(), first)
    assert data.train.labels.tolist() == list(range(5)) * 2 + [0, 1]
    assert len(data.test.labels) == 6


def test_a_data_set_that_save_to_disk_wrote(tmp_path):
    write_dataset(tmp_path / "set")
    both = datasets.load_dataset(str(tmp_path / "set"))
    both.save_to_disk(str(tmp_path / "saved"))
    assert torch.equal(
        loaded(tmp_path, tmp_path / "saved").train.pixels,
        loaded(tmp_path, tmp_path / "set").train.pixels,
    )


def test_images_of_another_size_are_resized(tmp_path):
    data = loaded(tmp_path, write_dataset(tmp_path / "set", side=20))
    assert data.train.pixels.shape == (12, 3, 8, 8)


@pytest.mark.parametrize(
    ("options", "assignment", "told"),
    [
        ({"image": "image"}, "data.train_images=12", "no column 'img'.*did you mean"),
        ({}, 'data.label_column="fine_label"', "no column 'fine_label'"),
        ({}, "data.train_images=13", "expected 13 images, found 12"),
        ({"labels": [9] * 12}, "data.classes=5", "labels from 0 to 4, found 9 in row 0"),
        ({"labels": [-1] * 12}, "data.classes=5", "found -1 in row 0"),
        ({}, 'data.train_split="training"', "cannot load the data set"),
    ],
)
def test_a_data_set_that_is_not_as_described(tmp_path, options, assignment, told):
    folder = write_dataset(tmp_path / "set", **options)
    with pytest.raises(InputError, match=told):
        loaded(tmp_path, folder, assignment)
