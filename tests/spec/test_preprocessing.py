"""What a teacher's pixels go through: what its checkpoint says of them, or the matrix file."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    ViTImageProcessor,
)

from kdbench.common.errors import InputError
from kdbench.predict.cell import predict
from kdbench.spec.device_profile import load_profile
from kdbench.spec.preprocessing import CLIP, Preprocessing
from kdbench.spec.pretrained.local import read_local_teacher
from kdbench.worker.data.augment import Draw, draw_boxes, make_batch, prepare
from kdbench.worker.data.dataset import load_data
from kdbench.worker.data.images import Images
from kdbench.worker.models.teacher import load_teacher
from kdbench.worker.probes.account import account_step
from kdbench.worker.training.precompute import recipe_of
from tests.support.checkpoints import pretrained, put_on_hub, write_embedder
from tests.support.models import CPU, session_of, tiny_run
from tests.worker.data.test_data import DIGITS

HALF = (0.5, 0.5, 0.5)
# where no filter reaches beyond black or white: Pillow clips that after each of its two passes
GREYS = torch.randint(
    60, 196, (2, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
)
CLIPS = "mean 0.48145466 0.4578275 0.40821073, std 0.26862954 0.26130258 0.27577711"
SIZE = {"height": 16, "width": 16}
PROCESSORS = {
    "shrunk": lambda: ViTImageProcessor(size=SIZE),
    "grown": lambda: ViTImageProcessor(size={"height": 64, "width": 64}),
    "cropped": lambda: DeiTImageProcessor(size={"height": 21, "width": 21}, crop_size=SIZE),
    "shorter side": lambda: CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SIZE),
    "share": lambda: ConvNextImageProcessor(size={"shortest_edge": 16}, crop_pct=0.7),
    "unscaled": lambda: ViTImageProcessor(
        size=SIZE, do_rescale=False, image_mean=[100.0, 110.0, 120.0], image_std=[60.0, 50.0, 40.0]
    ),
    "to -1..1 and not normalised": lambda: ViTImageProcessor(
        size=SIZE, rescale_factor=1 / 127.5, do_normalize=False
    ),
    "as they are": lambda: CLIPImageProcessor(do_resize=False, crop_size=SIZE),
    **{
        f"filter {number}": lambda number=number: ViTImageProcessor(size=SIZE, resample=number)
        for number in range(6)
    },
}


def side_of(name):
    return 64 if name == "grown" else 16


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_those_of_the_checkpoints_own_processor(name, tmp_path):
    side, processor = side_of(name), PROCESSORS[name]()
    write_embedder(tmp_path / "vit", image_size=side)
    processor.save_pretrained(tmp_path / "vit")
    size = f"teachers.dwarf.image_size={side}"
    cell = pretrained(tmp_path, tmp_path / "vit", size, "data.image_size=24")
    how = load_teacher(cell, device=CPU, cache=tmp_path).preprocessing
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in GREYS]
    wanted = torch.as_tensor(np.stack(processor(pictures)["pixel_values"]))
    found = prepare(GREYS, side, how=how)
    assert found.shape == wanted.shape
    # Pillow rounds to whole levels after each of two passes, we never do
    levels = (found - wanted) * torch.tensor(how.std).view(3, 1, 1) * 255
    assert levels.abs().max() <= 1.1
    assert CLIP.mean != how.mean or name in ("shorter side", "as they are")


@pytest.mark.parametrize("name", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
def test_a_box_is_resized_as_pillow_does_it(name):
    boxes = draw_boxes(2, (0.2, 0.9), torch.Generator().manual_seed(2))
    how = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resampling=name)
    found = prepare(GREYS, 16, boxes, how=how) * 255
    for image, box, own in zip(GREYS, boxes, found, strict=True):
        top, left, height, width = (box * 24).tolist()
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        wanted = picture.resize(
            (16, 16),
            getattr(Image.Resampling, name.upper()),
            box=(left, top, left + width, top + height),
        )
        wanted = torch.from_numpy(np.array(wanted)).permute(2, 0, 1)
        assert (own - wanted).abs().max() <= 1.1


@pytest.mark.parametrize("name", ["bicubic", "lanczos"])
def test_what_is_blacker_than_black_is_black(name):
    edge = torch.zeros(1, 3, 24, 24)
    edge[..., 12:] = 255
    how = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), resampling=name)
    seen = prepare(edge, 40, how=how)
    assert (seen.min(), seen.max()) == (0, 1)


def test_student_and_teacher_see_the_same_part_each_in_its_own_way():
    labels = torch.zeros(2, dtype=torch.int64)
    boxes = draw_boxes(2, (0.2, 0.9), torch.Generator().manual_seed(2))
    draw = Draw(torch.arange(2), torch.tensor([True, False]), boxes)
    how = Preprocessing(mean=HALF, std=HALF, resampling="bicubic", resize=20)
    images = Images(GREYS, labels)
    batch = make_batch(images, draw, image_size=8, teacher_size=16, teacher_how=how)
    shown = torch.stack([GREYS[0].flip(-1), GREYS[1]])
    assert torch.equal(batch.images, prepare(shown, 8, boxes))
    assert torch.equal(batch.teacher_images, prepare(shown, 16, boxes, how=how))
    centre = prepare(shown, 20, boxes, how=Preprocessing(mean=HALF, std=HALF, resampling="bicubic"))
    torch.testing.assert_close(batch.teacher_images, centre[..., 2:18, 2:18])


TEACHER = ('teachers.dwarf.weights="pretrained"', "teachers.dwarf.image_size=16")


@pytest.mark.usefixtures("forked_workers")
def test_a_runs_embeddings_are_those_of_the_teachers_own_processor(kdbench, tiny, tmp_path):
    """And the matrix file's word wins over the checkpoint's; both are told in the table."""
    model = write_embedder(tmp_path / "vit")
    processor = DeiTImageProcessor(size={"height": 20, "width": 20}, crop_size=SIZE)
    processor.save_pretrained(tmp_path / "vit")
    settings = (
        *DIGITS,
        *TEACHER,
        f'teachers.dwarf.checkpoint="{tmp_path / "vit"}"',
        'axes.method=["cached-kd"]',
        'mode="train"',
        "training.epochs=1",
    )

    def embeddings(*more):
        before = set((tmp_path / "cache").rglob("*.safetensors"))
        words = [word for setting in (*settings, *more) for word in ("--set", setting)]
        said = kdbench("run", "--matrix", tiny, "--device", "cpu", *words)
        assert said.code == 0, said
        (path,) = set((tmp_path / "cache").rglob("*.safetensors")) - before
        return load_file(path)["embeddings"][:, 0]

    own, other = embeddings(), embeddings('teachers.dwarf.normalisation="clip"')
    pixels = load_data(tiny_run(tmp_path, "cached-kd", *DIGITS).cell, device=CPU).train.pixels
    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    with torch.no_grad():
        inputs = torch.as_tensor(np.stack(processor(pictures)["pixel_values"]))
        wanted = model(pixel_values=inputs).last_hidden_state[:, 0]
    near, far = (torch.cosine_similarity(found, wanted) for found in (own, other))
    assert near.mean() > 0.9999
    assert far.mean() < 0.999
    cells = pd.read_parquet(tmp_path / "results" / "tiny" / "cells").sort_values("started_at")
    assert cells["teacher_preprocessing"].tolist() == [
        "20 bicubic, centre 16, mean 0.5 0.5 0.5, std 0.5 0.5 0.5",
        f"20 bicubic, centre 16, {CLIPS}",
    ]
    sources = cells["teacher_preprocessing_source"].tolist()
    assert sources == ["checkpoint", "matrix over checkpoint"]
    assert cells["cell_id"].nunique() == 2


def said_by(tmp_path, *assignments):
    pixels = read_local_teacher(tiny_run(tmp_path, "embed-kd", *assignments).cell).preprocessing
    return pixels.summary(16), pixels.source


def test_teachers_without_a_checkpoint_have_clips(tmp_path):
    clips = f"16 bilinear, {CLIPS}"
    assert said_by(tmp_path) == (clips, "default")
    write_embedder(tmp_path / "vit")
    checkpoint = f'teachers.dwarf.checkpoint="{tmp_path / "vit"}"'
    assert said_by(tmp_path, *TEACHER, checkpoint) == (clips, "default")
    half = 'teachers.dwarf.normalisation="half"'
    told = "16 bilinear, mean 0.5 0.5 0.5, std 0.5 0.5 0.5"
    assert said_by(tmp_path, half) == (told, "matrix over default")
    written = "teachers.dwarf.normalisation={mean=[0.5,0.5,0.5],std=[0.5,0.5,0.5]}"
    whole = ('teachers.dwarf.resampling="bilinear"', "teachers.dwarf.resize=16")
    assert said_by(tmp_path, written, *whole) == (told, "matrix")


def test_only_what_is_set_is_in_the_identity(tmp_path):
    def identity(*assignments):
        cell = tiny_run(tmp_path, "embed-kd", *assignments).cell
        return cell.cell_id

    names = {
        identity(*change)
        for change in (
            (),
            ('teachers.dwarf.normalisation="half"',),
            ('teachers.dwarf.normalisation="imagenet"',),
            ('teachers.dwarf.resampling="bicubic"',),
            ("teachers.dwarf.resize=20",),
        )
    }
    assert len(names) == 5
    # as it was before there were such keys
    assert identity() == "d5d64d3307ea8a78"
    written = "teachers.dwarf.normalisation={mean=[0.5,0.5,0.5],std=[0.5,0.5,0.5]}"
    assert identity(written) == identity('teachers.dwarf.normalisation="half"')


def test_kept_embeddings_are_of_one_preprocessing(tmp_path):
    run = tiny_run(tmp_path, "embed-kd", *DIGITS)
    data, teacher = (
        load_data(run.cell, device=CPU),
        load_teacher(run.cell, device=CPU, cache=tmp_path),
    )
    first = recipe_of(run, data, teacher, {})
    teacher.preprocessing = Preprocessing(mean=HALF, std=HALF)
    assert recipe_of(run, data, teacher, {}) != first


def described(tmp_path, *assignments, file="preprocessor_config.json", **keys):
    write_embedder(tmp_path / "vit")
    (tmp_path / "vit" / file).write_text(json.dumps(keys))
    cell = pretrained(tmp_path, tmp_path / "vit", *assignments)
    return read_local_teacher(cell).preprocessing.summary(16)


WHOLE = (
    'teachers.dwarf.normalisation="half"',
    'teachers.dwarf.resampling="bicubic"',
    "teachers.dwarf.resize=16",
)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        # the oldest files
        ({"size": 16, "image_mean": [0.5] * 3}, "16 bilinear, mean 0.5 0.5 0.5, std 0.5"),
        ({"feature_extractor_type": "ViTFeatureExtractor", "size": [16, 16]}, "16 bilinear, mean"),
        ({"image_processor_type": "ViTImageProcessorFast", "size": SIZE, "resample": 3}, "16 bicu"),
        ({"image_processor_type": "CLIPFeatureExtractor", "size": 24, "crop_size": 16}, "24 bicub"),
        ({"size": {"shortest_edge": 16, "longest_edge": 20}, "image_mean": 0.1}, "16 bilinear, me"),
        ({"size": 16, "do_center_crop": None, "crop_size": None, "resample": None}, "16 bilinear"),
        ({"size": 16, "rescale_factor": 0.00392156862745098}, "16 bilinear, mean 0.5 0.5 0.5, st"),
    ],
)
def test_files_of_all_ages(tmp_path, keys, told):
    assert described(tmp_path, **keys).startswith(told)


def test_a_processor_within_a_processor(tmp_path):
    nested = {"image_processor": {"size": 16, "image_mean": [0.1, 0.2, 0.3]}}
    assert "mean 0.1 0.2 0.3" in described(tmp_path, file="processor_config.json", **nested)
    # it wins, unless it is one of texts
    assert "mean 0.1 0.2 0.3" in described(tmp_path, size=16)
    (tmp_path / "vit" / "processor_config.json").write_text('{"processor_class": "X"}')
    assert "mean 0.5 0.5 0.5" in described(tmp_path, size=16)


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"resample": 9}, "resampling: expected one of 0 (nearest), 1 (lanczos), 2 (bilinear), 3"),
        ({"resample": "cubic"}, "dwarf.resampling: expected one of 0 (nearest), 1 (lanczos)"),
        ({"do_pad": True}, "expected nothing, or false, for do_pad in preprocessor_config.json, f"),
        ({"do_flip_channel_order": True}, "expected nothing, or false, for do_flip_channel_order"),
        ({"do_normalize": "per_image"}, "expected true or false for do_normalize in preprocessor"),
        ({"image_processor_type": "SamImageProcessor"}, "expected one of 'ViTImageProcessor', 'D"),
        ({"image_processor_type": {}}, "expected one of 'ViTImageProcessor', 'DeiTImageProcessor"),
        ({"image_mean": [0.5]}, "expected three numbers for image_mean in preprocessor_config.jso"),
        ({"image_mean": [0.5, 0.5, float("nan")]}, "expected three numbers for image_mean in prep"),
        ({"image_std": [0.5, 0.0, 0.5]}, "expected numbers above 0 for image_std in preprocessor"),
        ({"rescale_factor": 10**400}, "expected a number in 0..1 for rescale_factor in preprocess"),
        (
            {"size": 32},
            "resize: expected 16, as image_size of the teacher is for size in preproces",
        ),
        ({"size": {"height": 16, "width": 20}}, "dwarf.resize: expected a square for size in prep"),
        ({"size": {"longest_edge": 16}}, "resize: expected height and width, or shortest_edge, fo"),
        ({"size": "16"}, "dwarf.resize: expected a side in pixels for size in preprocessor_config"),
        (
            {"do_resize": False},
            "resize: expected 16, as image_size of the teacher is for do_resize",
        ),
        (
            {"do_center_crop": True},
            "expected a side in pixels for crop_size in preprocessor_config",
        ),
        ({"do_center_crop": True, "crop_size": 32, "size": 20}, "expected at most the 20 that pic"),
    ],
)
def test_what_cannot_be_done_is_told_with_the_key_to_set(tmp_path, keys, told):
    with pytest.raises(InputError) as caught:
        described(tmp_path, **{"size": 16} | keys)
    assert told in str(caught.value)
    assert "in the matrix file" in str(caught.value)
    assert str(caught.value).isprintable()
    # ...and with the keys it goes
    assert described(tmp_path, *WHOLE, **{"size": 16} | keys).startswith("16 bicubic, mean 0.5")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[" * 100_000, "cannot read preprocessor_config.json: RecursionError"),
        ("[]", "expected a table in preprocessor_config.json, found []"),
        ("version https://git-lfs.github.com/spec/v1\noid", "`git lfs pull` in"),
    ],
)
def test_a_broken_file(tmp_path, text, told):
    write_embedder(tmp_path / "vit")
    (tmp_path / "vit" / "preprocessor_config.json").write_text(text)
    with pytest.raises(InputError) as caught:
        pretrained(tmp_path, tmp_path / "vit")
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "told"),
    [
        ('normalisation="clipp"', "expected one of 'clip', 'imagenet', 'half', or { mean = "),
        ("normalisation=3", "dwarf.normalisation: expected a table, found 3"),
        ("normalisation={mean=[0,0,0]}", "dwarf.normalisation.std: a value is needed here"),
        ("normalisation={mean=[0,0,0],std=[1,0,1]}", "dwarf.normalisation.std[1]: expected"),
        ('resampling="cubic"', "dwarf.resampling: expected one of 'nearest', 'box', 'bilinear'"),
        ("resize=15", "dwarf.resize: expected at least image_size = 16, found 15"),
    ],
)
def test_the_matrix_files_keys(tmp_path, assignment, told):
    with pytest.raises(InputError) as caught:
        tiny_run(tmp_path, "embed-kd", f"teachers.dwarf.{assignment}")
    assert told in str(caught.value)


def test_a_repository_on_the_hub_says_it_too(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    write_embedder(tmp_path / "vit")
    snapshot = put_on_hub(tmp_path / "hub", "some/vit", tmp_path / "vit", commit="1" * 40)
    cell = pretrained(tmp_path, "some/vit")

    def load(cell=cell):
        return load_teacher(cell, device=CPU, cache=tmp_path).preprocessing.source

    assert load() == "default"
    config = snapshot / "preprocessor_config.json"
    config.write_text('{"size": 16}')
    assert load() == "checkpoint"
    # without a network, and without the hub's word that there is none
    config.unlink()
    for known in (tmp_path / "hub").rglob(".no_exist/*/*"):
        known.unlink()
    with pytest.raises(InputError, match=r"dwarf\.normalisation: what its pixels go through is no"):
        load()
    assert load(pretrained(tmp_path, "some/vit", *WHOLE)) == "matrix"


@pytest.mark.parametrize("method", ["teacher-kd", "embed-kd"])
def test_a_prediction_builds_the_checkpoints_own_model(method, tmp_path):
    """Another width of the MLP, no pooler, bicubic and cropped: to the byte."""
    write_embedder(tmp_path / "vit", pooler=False, intermediate_size=40, hidden_act="quick_gelu")
    DeiTImageProcessor(size={"height": 60, "width": 60}, crop_size=SIZE).save_pretrained(
        tmp_path / "vit"
    )
    cell = pretrained(tmp_path, tmp_path / "vit", "data.crop=[0.5,1.0]", method=method)
    run = tiny_run(tmp_path, method).model_copy(update={"cell": cell})
    torch.set_num_threads(1)
    session = session_of(cell, CPU, tmp_path)
    draws = session.draws(0)
    for _ in range(2):
        session.step(next(draws))
    account = account_step(session, next(draws))
    made = predict(run, load_profile("cpu")).columns
    assert made["allocated_peak_bytes"] == account.ledger.peak_bytes()
    assert made["bytes_moved_step"] == account.work.bytes_moved
    held = session.teacher or load_teacher(cell, device=CPU, cache=tmp_path)
    extra = sum(p.nbytes for p in held.parameters()) if method == "teacher-kd" else 0
    student = sum(p.nbytes for p in session.student.parameters())
    assert made["parameter_bytes"] == student + extra
    assert made["teacher_preprocessing"].startswith("60 bicubic, centre 16, mean 0.5")
    assert made["caveats"] is None
