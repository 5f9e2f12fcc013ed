"""Images: where they come from, in what order, and what the models see of them."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kdbench.common.errors import InputError
from kdbench.worker.data.augment import Draw, draw_boxes, epoch_draws, make_batch, prepare
from kdbench.worker.data.dataset import DataSet, load_data
from kdbench.worker.data.images import Images
from tests.support.models import tiny_run

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


def test_a_flip_and_a_crop_change_neither_the_order_nor_each_other():
    plain = draws(64, 8, crop=None)
    cropped = draws(64, 8, crop=(0.3, 1.0))
    for one, other in zip(plain, cropped, strict=True):
        assert torch.equal(one.indices, other.indices)
        assert torch.equal(one.flips, other.flips)
        assert one.boxes is None
        assert other.boxes.shape == (8, 4)
        assert len(one.tensors()) == 2
        assert len(other.tensors()) == 3
    again = draws(64, 8, crop=(0.3, 1.0), flip=False)
    assert all(torch.equal(a.boxes, b.boxes) for a, b in zip(cropped, again, strict=True))


@settings(max_examples=60, deadline=None)
@given(bounds=st.tuples(st.floats(1e-4, 1), st.floats(1e-4, 1)), seed=st.integers(0, 2**31))
def test_a_crop_lies_within_the_image_and_keeps_the_share_asked_for(bounds, seed):
    crop = min(bounds), max(bounds)
    boxes = draw_boxes(50, crop, torch.Generator().manual_seed(seed)).double()
    top, left, height, width = boxes.T
    assert ((top >= 0) & (left >= 0) & (height > 0) & (width > 0)).all()
    assert ((top + height <= 1 + 1e-6) & (left + width <= 1 + 1e-6)).all()
    area = height * width
    assert ((area >= crop[0] * (1 - 1e-5)) & (area <= crop[1] * (1 + 1e-5))).all()
    ratio = width / height
    assert ((ratio >= 0.75 - 1e-5) & (ratio <= 4 / 3 + 1e-5)).all()


def unprepared(seen):
    """Back to pixel values, float64 [n, size, size, 3]."""
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).double().view(3, 1, 1)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).double().view(3, 1, 1)
    return ((seen.double() * deviation + mean) * 255).permute(0, 2, 3, 1).numpy()


@settings(max_examples=40, deadline=None)
@given(
    side=st.integers(1, 40),
    size=st.integers(1, 40),
    crop=st.tuples(st.floats(0.05, 1), st.floats(0.05, 1)),
    seed=st.integers(0, 2**31),
)
def test_a_cropped_image_agrees_with_pillows(side, size, crop, seed):
    """Growing and shrinking; Pillow rounds to whole pixel values, once for each direction."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (3, 3, side, side), dtype=torch.uint8, generator=generator)
    boxes = draw_boxes(3, (min(crop), max(crop)), generator)
    seen = unprepared(prepare(pixels, size, boxes))
    for image, box, mine in zip(pixels, boxes.double() * side, seen, strict=True):
        top, left, height, width = box.tolist()
        edges = (left, top, min(left + width, side), min(top + height, side))
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        wanted = picture.resize((size, size), Image.Resampling.BILINEAR, box=edges)
        assert np.abs(mine - np.asarray(wanted)).max() <= 1.1


@pytest.mark.parametrize("size", [8, 32, 50])
def test_a_crop_of_the_whole_image_is_the_resized_image(size):
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(2, 4)
    np.testing.assert_allclose(
        prepare(pixels, size, whole).numpy(), prepare(pixels, size).numpy(), atol=2e-5
    )


def test_a_crop_is_cut_from_the_mirrored_image_for_student_and_teacher():
    pixels = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    pixels[..., :4] = 255  # bright on the left
    right = torch.tensor([[0.0, 0.75, 0.25, 0.25]])
    images = Images(pixels, torch.tensor([0]))
    for flipped, bright in ((False, 0), (True, 255)):
        draw = Draw(torch.tensor([0]), torch.tensor([flipped]), right)
        batch = make_batch(images, draw, image_size=4, teacher_size=16)
        assert abs(unprepared(batch.images).mean() - bright) < 0.01
        assert abs(unprepared(batch.teacher_images).mean() - bright) < 0.01


@pytest.mark.parametrize("rows", [None, [5, 0, 0, 3, 6]])
def test_images_in_batches(rows):
    images = Images(torch.arange(7 * 3 * 4).reshape(7, 3, 2, 2).byte(), torch.arange(7))
    batches = list(images.batches(3, None if rows is None else torch.tensor(rows)))
    assert [len(batch.labels) for batch in batches] == ([3, 3, 1] if rows is None else [3, 2])
    labels = torch.cat([batch.labels for batch in batches])
    assert labels.tolist() == (rows or list(range(7)))
    assert torch.equal(torch.cat([batch.pixels for batch in batches]), images.pixels[labels])


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ("data.crop=[0.5, 0.1]", "data.crop.*smallest share first.*\\[0.5, 0.1\\]"),
        ("data.crop=[0.0, 1.0]", r"data.crop\[0\].*expected more than 0, found 0.0"),
        ("data.crop=[0.5]", "data.crop"),
        ('data.storage="stream"', 'data.storage.*needs source = "datasets"'),
        ('data.storage="disk"', "data.storage.*'auto', 'device', 'stream'"),
        ("data.workers=0", "data.workers"),
    ],
)
def test_settings_that_mean_nothing_are_refused(tmp_path, assignment, told):
    with pytest.raises(InputError, match=told):
        tiny_run(tmp_path, "embed-kd", assignment)


def test_a_crop_travels_to_the_worker_and_is_part_of_the_cell(tmp_path):
    plain = tiny_run(tmp_path, "embed-kd").cell
    cell = tiny_run(tmp_path, "embed-kd", "data.crop=[0.25, 1]").cell
    assert type(cell).model_validate_json(cell.model_dump_json()) == cell
    assert cell.data.crop == (0.25, 1.0)
    assert cell.cell_id != plain.cell_id
