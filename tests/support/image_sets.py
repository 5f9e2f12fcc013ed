"""Tiny data sets in each form that is supported, written by the libraries' own functions."""

import datasets
import numpy as np
from PIL import Image

from tests.support.models import tiny_run

COUNTS = {"train": 12, "test": 6}
CLASSES = 5


def picture_pixels(split, side=8):
    """uint8, [n, side, side, 3]."""
    generator = np.random.default_rng(sorted(COUNTS).index(split))
    return generator.integers(0, 256, (COUNTS[split], side, side, 3), dtype=np.uint8)


def table(split, *, labels=None, names=None, side=8, image="img", pictures=None):
    """One split as a Dataset; `names` makes the labels a ClassLabel."""
    pictures = pictures or [Image.fromarray(each) for each in picture_pixels(split, side)]
    labels = (labels or list(range(CLASSES)) * 3)[: len(pictures)]
    kind = datasets.ClassLabel(names=names) if names else datasets.Value("int64")
    return datasets.Dataset.from_dict(
        {image: pictures, "label": labels},
        features=datasets.Features({image: datasets.Image(), "label": kind}),
    )


def write_parquet(folder, pattern="data/{split}-00000-of-00001.parquet", **options):
    for split in COUNTS:
        path = folder / pattern.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        table(split, **options).to_parquet(str(path))
    return folder


def write_saved(folder, **options):
    both = datasets.DatasetDict({split: table(split, **options) for split in COUNTS})
    both.save_to_disk(str(folder))
    return folder


def write_saved_apart(folder, **options):
    for split in COUNTS:
        table(split, **options).save_to_disk(str(folder / split))
    return folder


def write_pictures(folder, suffix="png"):
    """Classes a..e; the pictures of a class are numbered as in the tables."""
    for split in COUNTS:
        for number, pixels in enumerate(picture_pixels(split)):
            path = folder / split / "abcde"[number % CLASSES] / f"{number:02}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return folder


def image_run(tmp_path, path, *assignments, method="embed-kd"):
    """A run of the tiny matrix on the images at `path`."""
    return tiny_run(
        tmp_path,
        method,
        'data.source="datasets"',
        f'data.path="{path}"',
        "data.train_images=12",
        "data.test_images=6",
        "data.workers=2",
        *assignments,
    )
