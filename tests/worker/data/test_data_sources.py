"""Data sets in each form: loaded alike, and refused clearly where they are not as described."""

import io
import shutil

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from kdbench.common.errors import InputError
from kdbench.runner.process.launcher import uses_hub
from kdbench.worker.data.dataset import load_data
from tests.conftest import ALONE
from tests.support.image_sets import (
    image_run,
    picture_pixels,
    table,
    write_parquet,
    write_pictures,
    write_saved,
    write_saved_apart,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    """`datasets` reads its settings once, when it is imported."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def loaded(tmp_path, path, *assignments):
    return load_data(image_run(tmp_path, path, *assignments).cell, device=CPU)


FORMS = {
    "the hub's layout": write_parquet,
    "several parts": lambda path: write_parquet(path, "{split}/0.parquet"),
    "a file for each split": lambda path: write_parquet(path, "{split}.parquet"),
    "a DatasetDict": write_saved,
    "a Dataset for each split": write_saved_apart,
    "named classes": lambda path: write_saved(path, names=list("abcde")),
}


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_table_is_read_alike(tmp_path, form):
    data = loaded(tmp_path, FORMS[form](tmp_path / "set"))
    for split, images in (("train", data.train), ("test", data.test)):
        assert np.array_equal(images.pixels.permute(0, 2, 3, 1).numpy(), picture_pixels(split))
        assert images.labels.tolist() == (list(range(5)) * 3)[: len(images.labels)]
    assert data.train_count == 12
    assert data.storage == "device"


def test_a_folder_of_pictures(tmp_path):
    folder = write_pictures(tmp_path / "set")
    (folder / "train" / "a" / "index.txt").write_text("no picture")
    (folder / ".cache").mkdir()
    data = loaded(tmp_path, folder)
    order = sorted(range(12), key=lambda number: (number % 5, number))
    assert data.train.labels.tolist() == [number % 5 for number in order]
    seen = data.train.pixels.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(seen, picture_pixels("train")[order])


@pytest.mark.parametrize("storage", ["device", "stream"])
@pytest.mark.parametrize(
    ("write", "names"),
    [
        (write_pictures, ("a", "b", "c", "d", "e")),
        (FORMS["named classes"], ("a", "b", "c", "d", "e")),
        (write_parquet, None),
    ],
)
def test_the_classes_have_the_names_that_the_data_gives_them(tmp_path, write, names, storage):
    data = loaded(tmp_path, write(tmp_path / "set"), f'data.storage="{storage}"')
    assert data.class_names == names


def name_otherwise(folder):
    """Give pictures of the training split other names, and put what is none beside them."""
    train = folder / "train"
    pixels = Image.fromarray(picture_pixels("train")[0])
    for name, kind in (("00.JFIF", "JPEG"), ("05.jp2", "JPEG2000")):
        pixels.save(train / "a" / name, kind)
        (train / "a" / f"{name[:2]}.png").unlink()
    (train / "b" / "01.png").rename(train / "b" / "01")
    (train / "c" / "02.png").rename(folder / "elsewhere.png")
    (train / "c" / "02.png").symlink_to(folder / "elsewhere.png")
    for name in (".DS_Store", "._00.png", "x.HEIC", "y.heic", "README", "readme.txt"):
        (train / "a" / name).write_bytes(b"no picture")
    (train / "a" / "gone.png").symlink_to(folder / "nowhere.png")
    (train / "a" / "more").mkdir()
    (train / "__MACOSX" / "a").mkdir(parents=True)
    return folder


OTHERS = "2 .heic, 1 .txt, 1 broken links, 1 folders, 1 without an ending"


def test_what_pillow_reads_is_read_and_the_rest_is_named(tmp_path):
    folder = name_otherwise(write_pictures(tmp_path / "set"))
    data = loaded(tmp_path, folder)
    assert len(data.train.labels) == 12
    (note,) = data.notes
    assert note.startswith(f"{folder} (train): passed over")
    assert note.endswith(OTHERS)
    with pytest.raises(InputError, match=f"expected 17 images, found 12; passed over.*{OTHERS}"):
        loaded(tmp_path, folder, "data.train_images=17")


def test_a_class_without_pictures_is_told(tmp_path):
    folder = write_pictures(tmp_path / "set")
    for file in (folder / "train" / "b").iterdir():
        file.rename(file.with_suffix(".heic"))
    told = r"train: data.path: expected pictures of every class, found none of 'b'; .* \d \.heic"
    with pytest.raises(InputError, match=told):
        loaded(tmp_path, folder)


@pytest.mark.usefixtures("forked_workers")
def test_what_is_passed_over_is_told_once_in_a_run(kdbench, tiny, tmp_path):
    folder = name_otherwise(write_pictures(tmp_path / "set"))
    sets = ['source="datasets"', f'path="{folder}"', "train_images=12", "test_images=6"]
    said = kdbench(
        *("run", "--matrix", tiny, "--device", "cpu", *ALONE),
        *("--set", "axes.batch_size=[4, 5]", "--set", "budget.max_steps=2"),
        *(part for setting in sets for part in ("--set", f"data.{setting}")),
    )
    assert said.code == 0, said
    assert said.out.count(OTHERS) == 1, "not once a cell"
    assert said.out.count("noise, 12 images in batches of 5: 2 steps, 2 left out") == 1


def test_a_class_that_the_test_split_lacks_keeps_the_numbers(tmp_path):
    folder = write_pictures(tmp_path / "set")
    shutil.rmtree(folder / "test" / "b")
    data = loaded(tmp_path, folder, "data.test_images=5")
    assert data.test.labels.tolist() == [0, 0, 2, 3, 4]


def test_a_class_that_the_training_split_lacks_is_told(tmp_path):
    folder = write_pictures(tmp_path / "set")
    (folder / "test" / "e").rename(folder / "test" / "f")
    with pytest.raises(InputError, match=r"test: data.path: the class 'f' is not in the training"):
        loaded(tmp_path, folder)


def test_a_single_parquet_file_is_cut(tmp_path):
    path = tmp_path / "all.parquet"
    table("train").to_parquet(str(path))
    cut = ('data.train_split="train[:8]"', "data.train_images=8")
    data = loaded(tmp_path, path, *cut, 'data.test_split="train[8:]"', "data.test_images=4")
    both = torch.cat([data.train.pixels, data.test.pixels]).permute(0, 2, 3, 1)
    assert np.array_equal(both.numpy(), picture_pixels("train"))
    with pytest.raises(InputError, match=r"data.test_split: a single file is the split 'train'"):
        loaded(tmp_path, path, *cut)


def test_a_configuration_is_a_folder(tmp_path):
    write_parquet(tmp_path / "set" / "small")
    assert len(loaded(tmp_path, tmp_path / "set", 'data.config="small"').test.labels) == 6
    with pytest.raises(InputError, match=r"data.config: no such folder"):
        loaded(tmp_path, tmp_path / "set", 'data.config="large"')


def test_the_hub_is_asked_for_name_configuration_split_and_revision(tmp_path, monkeypatch):
    asked = []

    def load_dataset(name, config, *, split, revision):
        asked.append((name, config, split, revision))
        return table(split)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    run = image_run(tmp_path, "some/set", 'data.config="small"', 'data.revision="abc"')
    assert len(load_data(run.cell, device=CPU).train.labels) == 12
    assert asked == [("some/set", "small", split, "abc") for split in ("train", "test")]
    assert uses_hub(run)


def test_what_the_hub_does_not_give_is_told_with_what_to_fetch(tmp_path):
    with pytest.raises(
        InputError, match=r"some/set: data.path: cannot load.*hf download --repo-ty"
    ):
        loaded(tmp_path, "some/set")  # the tests keep the hub's library offline


@pytest.mark.parametrize("name", ["pandas", "parquet", "./nothing", "/nothing/here", "a/b/c"])
def test_neither_a_path_nor_a_hub_name(tmp_path, name):
    """`load_dataset("pandas")` would read whatever pickles lie about."""
    with pytest.raises(InputError, match=r"data.path: no such file or folder, and no name on the"):
        loaded(tmp_path, name)


def test_a_local_file_needs_no_network_and_is_part_of_the_cell(tmp_path):
    paths = [tmp_path / "one.parquet", tmp_path / "other" / "one.parquet"]
    paths[1].parent.mkdir()
    for path in paths:
        table("train").to_parquet(str(path))
    first, same = (image_run(tmp_path, path) for path in paths)
    assert not uses_hub(first)
    assert first.cell.content_digests == same.cell.content_digests
    assert dict(first.cell.content_digests).keys() == {"data"}
    table("test").to_parquet(str(tmp_path / "third" / "one.parquet"))
    assert image_run(tmp_path, tmp_path / "third" / "one.parquet").cell.content_digests != (
        first.cell.content_digests
    )


def test_pictures_as_other_programs_write_them(tmp_path):
    """A column of bytes, without the metadata that `datasets` adds."""
    for split in ("train", "test"):
        rows = [cell["bytes"] for cell in undecoded(table(split))]
        datasets.Dataset.from_dict(
            {"img": rows, "label": [0] * len(rows)},
            features=datasets.Features(
                {"img": datasets.Value("binary"), "label": datasets.Value("uint8")}
            ),
        ).to_parquet(str(tmp_path / "set" / f"{split}.parquet"))
    data = loaded(tmp_path, tmp_path / "set")
    assert np.array_equal(data.test.pixels.permute(0, 2, 3, 1).numpy(), picture_pixels("test"))


def undecoded(split):
    return split.cast_column("img", datasets.Image(decode=False))["img"]


@pytest.mark.parametrize(
    ("write", "options", "assignment", "told"),
    [
        (write_parquet, {"image": "image"}, "data.classes=5", "image_column: no column 'img'; did"),
        (write_parquet, {}, 'data.label_column="fine"', "label_column: no column 'fine'; the col"),
        (write_parquet, {}, 'data.image_column="label"', "column of images, found Value"),
        (write_parquet, {}, 'data.label_column="img"', "expected integers, found"),
        (write_parquet, {}, "data.train_images=13", r"\(train\): data.train_images: expected 13 i"),
        (write_parquet, {}, "data.test_images=7", r"\(test\): data.test_images: expected 7 image"),
        (write_parquet, {"labels": [9] * 12}, "data.classes=5", "from 0 to 4, found 9 in row 0"),
        (write_parquet, {"labels": [0, -1] * 6}, "data.classes=5", "found -1 in row 1; -1 marks"),
        (write_parquet, {}, 'data.train_split="training"', "train_split: no split 'training'; did"),
        (
            write_parquet,
            {},
            'data.test_split="x"',
            "test_split: no split 'x'; the splits are 'test",
        ),
        (write_parquet, {}, 'data.test_split="test["', "test_split: cannot load the data set"),
        (write_saved, {"names": list("abcdef")}, "data.classes=5", "expected 5 classes, found 6"),
        (write_saved, {}, 'data.test_split="testing"', "test_split: no split 'testing'; did you"),
        (write_pictures, {}, "data.classes=6", "data.classes: expected 6 classes, found 5 folders"),
        (write_pictures, {}, 'data.test_split="val"', "no folder for the split 'val'; the folders"),
        (write_pictures, {}, 'data.train_split="trian"', "split 'trian'; did you mean 'train'"),
        (write_pictures, {}, "data.test_images=5", "data.test_images: expected 5 images, found 6"),
    ],
)
def test_a_data_set_that_is_not_as_described(tmp_path, write, options, assignment, told):
    folder = write(tmp_path / "set", **options)
    with pytest.raises(InputError, match=told) as error:
        loaded(tmp_path, folder, assignment)
    assert str(folder) in str(error.value)


def saved_train(folder, split):
    """A set whose training split is given."""
    split.save_to_disk(str(folder / "train"))
    table("test").save_to_disk(str(folder / "test"))
    return folder


@pytest.mark.parametrize(
    ("labels", "kind", "told"),
    [
        (list("abc") * 4, "string", "expected integers, found string; class_encode_column"),
        ([0.5] * 12, "float32", "expected integers, found float32"),
        ([True] * 12, "bool", "expected integers, found bool"),
        ([0, 1, None, 2] * 3, "int64", "expected a label, found none in row 2"),
        ([0] * 11 + [2**64 - 1], "uint64", "found 18446744073709551615 in row 11"),
    ],
)
def test_labels_that_are_no_class_numbers(tmp_path, labels, kind, told):
    split = table("train").remove_columns("label")
    split = split.add_column("label", labels, feature=datasets.Value(kind))
    with pytest.raises(InputError, match=told):
        loaded(tmp_path, saved_train(tmp_path / "set", split))


def test_splits_that_number_their_classes_differently(tmp_path):
    table("train", names=list("abcde")).save_to_disk(str(tmp_path / "set" / "train"))
    table("test", names=list("abced")).save_to_disk(str(tmp_path / "set" / "test"))
    with pytest.raises(InputError, match=r"that class 3 is 'd' in train and 'e' in test"):
        loaded(tmp_path, tmp_path / "set")


def test_an_empty_split(tmp_path):
    folder = saved_train(tmp_path / "set", table("train").select([]))
    with pytest.raises(InputError, match=r"train: data.train_split: the split is empty"):
        loaded(tmp_path, folder)
    parquet = write_parquet(tmp_path / "parquet", "{split}.parquet")
    table("train").select([]).to_parquet(str(parquet / "train.parquet"))
    with pytest.raises(InputError, match=r"parquet: data.train_split: the split is empty"):
        loaded(tmp_path, parquet)
    pictures = write_pictures(tmp_path / "pictures")
    for path in (pictures / "test").rglob("*.png"):
        path.unlink()
    with pytest.raises(InputError, match=r"\(test\): data.test_images: the split is empty"):
        loaded(tmp_path, pictures)


def test_a_single_saved_dataset_has_no_splits(tmp_path):
    table("train").save_to_disk(str(tmp_path / "set"))
    with pytest.raises(InputError, match=r"found a single Dataset; save a DatasetDict"):
        loaded(tmp_path, tmp_path / "set")


def test_damaged_tables(tmp_path):
    folder = write_parquet(tmp_path / "set")
    part = folder / "data" / "test-00000-of-00001.parquet"
    part.write_bytes(part.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"data.test_split: expected a parquet file"):
        loaded(tmp_path, folder)
    saved = write_saved(tmp_path / "saved")
    (arrow,) = (saved / "train").glob("*.arrow")
    arrow.write_bytes(b"")
    with pytest.raises(InputError, match=r"saved/train: data.path: cannot load"):
        loaded(tmp_path, saved)
    (tmp_path / "set.pkl").write_bytes(b"")
    with pytest.raises(InputError, match=r"expected a .parquet file or a folder"):
        loaded(tmp_path, tmp_path / "set.pkl")


def broken_picture():
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    Image.fromarray(noise).save(stream, "PNG")
    return stream.getvalue()[:700]


@pytest.mark.parametrize("storage", ["device", "stream"])
def test_a_damaged_picture_is_told_before_the_training(tmp_path, storage):
    pictures = [{"bytes": cell["bytes"], "path": None} for cell in undecoded(table("train"))]
    pictures[7]["bytes"] = broken_picture()
    folder = saved_train(tmp_path / "set", table("train", pictures=pictures))
    with pytest.raises(InputError, match=r"\(train\), row 7: data.image_column: expected a whole"):
        loaded(tmp_path, folder, f'data.storage="{storage}"')
    folder = write_pictures(tmp_path / "pictures")
    (folder / "test" / "c" / "02.png").write_bytes(broken_picture())
    with pytest.raises(InputError, match=r"test/c/02.png: data.path: expected a whole picture"):
        loaded(tmp_path, folder, f'data.storage="{storage}"')


@pytest.mark.parametrize("many", [False, True])
def test_damaged_pictures_of_both_splits_are_told_together(tmp_path, many):
    folder = write_pictures(tmp_path / "set")
    files = sorted(folder.glob("train/*/*.png" if many else "t*/c/02.png"))
    for file in files:
        file.write_bytes(b"" if many else broken_picture())
    with pytest.raises(InputError, match=r"^data\.path: expected whole pictures, found") as caught:
        loaded(tmp_path, folder)
    told = str(caught.value)
    assert [str(file) in told for file in files] == [True] * min(10, len(files)) + [False] * max(
        0, len(files) - 10
    )
    assert ("found at least 10 that are not" if many else "found 2 that are not") in told


@pytest.mark.parametrize("kept", [{"bytes", "path"}, {"bytes"}])
def test_pictures_without_names_of_files(tmp_path, kept):
    """Where every path is null, a struct's field has the type null, or is not there."""
    for split in ("train", "test"):
        rows = [
            {key: {"bytes": cell["bytes"]}.get(key) for key in sorted(kept)}
            for cell in undecoded(table(split))
        ]
        held = pa.table({"img": rows, "label": [0] * len(rows)})
        (tmp_path / "set").mkdir(exist_ok=True)
        pq.write_table(held, tmp_path / "set" / f"{split}.parquet")
    data = loaded(tmp_path, tmp_path / "set")
    assert np.array_equal(data.test.pixels.permute(0, 2, 3, 1).numpy(), picture_pixels("test"))


@pytest.mark.parametrize(
    "column", [["x"] * 12, [[1, 2]] * 12, [[[1]]] * 12, [{"a": 1}] * 12, [None] * 12, [1.5] * 12]
)
def test_a_column_of_something_else_is_told(tmp_path, column):
    folder = write_parquet(tmp_path / "set", "{split}.parquet")
    pq.write_table(pa.table({"img": column, "label": [0] * 12}), folder / "train.parquet")
    with pytest.raises(InputError, match=r"data.image_column: expected a column of images, found"):
        loaded(tmp_path, folder)


@pytest.mark.parametrize("name", ["data/train-00000-of-00001.parquet", "train/*.arrow"])
def test_tables_that_git_lfs_has_not_fetched(tmp_path, name):
    folder = (write_saved if name.endswith("arrow") else write_parquet)(tmp_path / "set")
    (file,) = folder.glob(name)
    file.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(InputError, match=r"found the git-LFS pointer to one; git lfs pull"):
        loaded(tmp_path, folder)


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ({"bytes": None, "path": "/nothing/x.png"}, "the path '/nothing/x.png', which is no file"),
        ({"bytes": None, "path": "http://x.invalid/x.png"}, "http://x.invalid/x.png', which is no"),
        (None, "expected a picture, found none"),
    ],
)
def test_a_row_without_a_picture(tmp_path, cell, told):
    kind = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
    rows = [*undecoded(table("train").select(range(11))), cell]
    features = datasets.Features({"img": kind, "label": datasets.Value("int64")})
    split = datasets.Dataset.from_dict({"img": rows, "label": [0] * 12}, features=features)
    split.to_parquet(str(tmp_path / "set" / "train.parquet"))
    table("test").to_parquet(str(tmp_path / "set" / "test.parquet"))
    with pytest.raises(InputError, match=rf"row 11: data.image_column: .*{told}"):
        loaded(tmp_path, tmp_path / "set")


def test_images_of_another_size_are_resized(tmp_path):
    data = loaded(tmp_path, write_parquet(tmp_path / "set", side=20))
    assert data.train.pixels.shape == (12, 3, 8, 8)
