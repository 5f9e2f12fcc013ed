"""Matrix files: which cells they ask for, and how the cells are identified."""

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench import load_matrix
from kdbench.common.errors import InputError
from kdbench.common.fingerprint import fingerprint_path
from kdbench.spec.preprocessing import CLIP, resolve_preprocessing
from tests.conftest import TINY
from tests.support import REPOSITORY
from tests.support.checkpoints import write_embedder

FIG4 = REPOSITORY / "benchmarks" / "fig4.toml"
LARGE32 = "vit-large-patch32"


def labels(**options):
    return [cell.label for cell in load_matrix(FIG4, **options).cells]


def test_fig4_is_the_papers_four_bars():
    assert sorted(labels()) == [
        f"embed-kd/base/64px/{LARGE32}",
        f"embed-kd/large/32px/{LARGE32}",
        f"embed-kd/large/64px/{LARGE32}",
        f"teacher-kd/base/32px/{LARGE32}",
    ]


def test_presets_of_fig4():
    grid = itertools.product(("embed-kd", "teacher-kd"), ("base", "large"), (32, 64))
    assert sorted(labels(preset="all")) == sorted(f"{m}/{s}/{n}px/{LARGE32}" for m, s, n in grid)
    teachers = {label.split("/")[-1] for label in labels(preset="teachers")}
    assert len(labels(preset="teachers")) == 16
    assert teachers == {
        f"vit-{size}-patch{patch}" for size in ("base", "large") for patch in (16, 32)
    }
    added = set(labels(preset="control")) - set(labels())
    assert added == {f"student-only/{s}/{n}px" for s in ("base", "large") for n in (32, 64)}


def test_the_papers_scale():
    matrix = load_matrix(FIG4, preset="paper")
    assert matrix.mode == "train"
    assert {cell.training.epochs for cell in matrix.cells} == {200}
    assert {cell.data.path for cell in matrix.cells} == {"uoft-cs/cifar100"}
    assert {cell.teacher.weights for cell in matrix.cells} == {"pretrained"}
    assert {cell.teacher.checkpoint for cell in matrix.cells} == {
        "google/vit-large-patch32-224-in21k"
    }


def test_defaults_are_the_papers():
    training = load_matrix(FIG4).cells[0].training
    assert (training.batch_size, training.learning_rate, training.weight_decay) == (64, 1e-4, 0.1)
    assert (training.alpha1, training.alpha2, training.images_per_class) == (0.5, 0.5, 100)


def test_random_teachers_are_labelled_so():
    rows = [run.plan_row() for run in load_matrix(FIG4).runs()]
    assert {row["teacher_weights"] for row in rows} == {"random"}
    assert {row["student"]: row["student_inferred"] for row in rows} == {
        "base": False,
        "large": True,
    }


def test_quickstart_has_three_methods_and_several_seeds():
    matrix = load_matrix(REPOSITORY / "benchmarks" / "quickstart.toml")
    assert {cell.method for cell in matrix.cells} == {"teacher-kd", "embed-kd", "student-only"}
    assert len(matrix.runs()) == len(matrix.cells) * len(matrix.seeds)
    assert len(matrix.seeds) > 1


def test_set_and_only(tiny):
    matrix = load_matrix(
        tiny,
        assignments=["training.batch_size=4", "axes.image_size=[8, 16]"],
        only=["method=embed-kd", "image_size=16"],
    )
    assert [run.cell.label for run in matrix.runs()] == ["embed-kd/small/16px/dwarf"]
    assert matrix.runs()[0].cell.training.batch_size == 4


def test_later_assignments_win_and_lie_over_the_preset(tiny):
    matrix = load_matrix(
        tiny,
        preset="control",
        assignments=['axes.method=["teacher-kd"]', 'axes.method=["student-only"]'],
    )
    assert [cell.label for cell in matrix.cells] == ["student-only/small/8px"]


def test_an_added_axis_is_in_the_label(tiny):
    matrix = load_matrix(tiny, assignments=["axes.alpha2=[0.25, 0.5]"])
    assert [cell.label for cell in matrix.cells][:2] == [
        "teacher-kd/small/8px/dwarf/alpha2=0.25",
        "teacher-kd/small/8px/dwarf/alpha2=0.5",
    ]
    assert [(c.training.alpha1, c.training.alpha2) for c in matrix.cells][:2] == [
        (0.75, 0.25),
        (0.5, 0.5),
    ]


def test_include_adds_cells(tiny):
    tiny.write_text(
        TINY.replace(
            "[students.small]",
            """
[[include]]
method = "embed-kd"
image_size = [16, 32]
batch_size = 2
[students.small]""",
            1,
        )
    )
    matrix = load_matrix(tiny)
    assert [cell.label for cell in matrix.cells][2:] == [
        "embed-kd/small/16px/dwarf/batch_size=2",
        "embed-kd/small/32px/dwarf/batch_size=2",
    ]
    assert [cell.training.batch_size for cell in matrix.cells] == [8, 8, 2, 2]


def test_a_method_without_a_teacher_comes_once(tiny):
    tiny.write_text(
        TINY + "\n[teachers.other]\npatch_size=8\nwidth=8\ndepth=1\nheads=1\nimage_size=16\n"
    )
    matrix = load_matrix(tiny, preset="control", assignments=['axes.teacher=["dwarf", "other"]'])
    assert [cell.label for cell in matrix.cells].count("student-only/small/8px") == 1
    assert len(matrix.cells) == 5


def ids(tiny, **options):
    return {cell.label: cell.cell_id for cell in load_matrix(tiny, **options).cells}


@pytest.mark.parametrize(
    "assignment",
    [
        "seeds=[1]",
        "repeats=2",
        "budget.max_steps=9",
        "threads=2",
        'mode="profile"',
        'data.name="other"',
        "students.small.inferred=true",
    ],
)
def test_what_does_not_decide_a_step_is_not_in_its_id(tiny, assignment):
    assert ids(tiny, assignments=[assignment]) == ids(tiny)


@pytest.mark.parametrize(
    "assignment",
    [
        "training.batch_size=4",
        "students.small.width=32",
        "teachers.dwarf.depth=2",
        'training.precision="bf16"',
        'training.attention="sdpa"',
        "training.learning_rate=1e-3",
        "data.classes=6",
        'training.loss="published-code"',
        "training.images_per_class=4",
    ],
)
def test_what_decides_a_step_is_in_its_id(tiny, assignment):
    before, after = ids(tiny), ids(tiny, assignments=[assignment])
    assert before.keys() == after.keys()
    assert all(before[label] != after[label] for label in before)


def test_the_content_of_a_local_checkpoint_is_in_the_id(tiny, tmp_path, monkeypatch):
    folder = tmp_path / "vit"
    write_embedder(folder)
    options = {
        "assignments": [
            'teachers.dwarf.weights="pretrained"',
            f'teachers.dwarf.checkpoint="{folder}"',
        ]
    }
    seen = set()
    for seed, mean in ((0, 0.5), (1, 0.5), (1, 0.4)):
        fingerprint_path.cache_clear()
        write_embedder(folder, seed=seed)
        processor = {"size": 16, "image_mean": mean}
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
        seen.add(ids(tiny, **options)["embed-kd/small/8px/dwarf"])
    assert len(seen) == 3


def test_run_keys_tell_runs_apart_and_stay_the_same(tiny):
    matrix = load_matrix(tiny, assignments=["seeds=[0, 1]", "repeats=2"])
    environment = {"torch_version": "2", "cpu_model": "x", "gpu_name": None, "driver_version": None}

    def keys(digest="w", device="cpu", **change):
        return [
            run.run_key(worker_digest=digest, environment=environment | change)
            for run in matrix.runs(device)
        ]

    assert len(set(keys())) == 8
    assert keys() == keys()
    assert not set(keys()) & set(keys(digest="other code"))
    assert not set(keys()) & set(keys(device="cuda:0"))
    assert not set(keys()) & set(keys(torch_version="3"))

    def budget(*assignments):
        (run,) = load_matrix(tiny, assignments=assignments, only=["method=embed-kd"]).runs()
        return run.run_key(worker_digest="w", environment=environment)

    assert budget() != budget("budget.max_steps=9")
    # under a longer limit a training goes on, and is no other one
    assert budget() == budget("budget.timeout_seconds=9", 'budget.checkpoints="none"')


def test_the_fewest_steps_may_be_the_most(tiny):
    budget = load_matrix(tiny, assignments=["budget.max_steps=2"]).budget
    assert (budget.min_steps, budget.max_steps) == (2, 2)


def test_repeats_lie_apart(tiny):
    runs = load_matrix(tiny, assignments=["repeats=2"]).runs()
    assert [run.repeat for run in runs] == [0, 0, 1, 1]


@settings(max_examples=60, deadline=None)
@given(
    methods=st.sets(st.sampled_from(["teacher-kd", "embed-kd", "student-only"]), min_size=1),
    sizes=st.sets(st.integers(1, 12), min_size=1, max_size=4),
    dropped=st.integers(0, 3),
)
def test_the_grid_is_the_product_less_what_is_excluded(tmp_path_factory, methods, sizes, dropped):
    tiny = tmp_path_factory.mktemp("grid") / "tiny.toml"
    sides = sorted(4 * size for size in sizes)
    gone = sides[: min(dropped, len(sides) - 1)]
    excluded = "".join(f"[[exclude]]\nimage_size = {side}\n" for side in gone)
    tiny.write_text(TINY.replace("[students.small]", excluded + "[students.small]", 1))
    names = ", ".join(f'"{method}"' for method in sorted(methods))
    matrix = load_matrix(tiny, assignments=[f"axes.method=[{names}]", f"axes.image_size={sides}"])
    assert {(c.method, c.image_size) for c in matrix.cells} == set(
        itertools.product(methods, set(sides) - set(gone))
    )
    assert len({cell.label for cell in matrix.cells}) == len(matrix.cells)
    assert len({cell.cell_id for cell in matrix.cells}) == len(matrix.cells)


@pytest.mark.parametrize("name", ["fig2", "fig3", "fig5"])
def test_the_papers_trainings_come_in_miniature_and_at_its_scale(name):
    path = REPOSITORY / "benchmarks" / f"{name}.toml"
    small, paper = load_matrix(path), load_matrix(path, preset="paper")
    assert small.name == name
    for matrix in (small, paper):
        assert matrix.mode == "train"
        assert len(matrix.seeds) >= 5, "an interval over seeds needs as many"
    assert {cell.data.source for cell in small.cells} == {"digits"}
    for cell in paper.cells:
        training, data = cell.training, cell.data
        assert (training.epochs, training.batch_size, training.learning_rate) == (200, 64, 1e-4)
        assert (data.path, data.classes, data.flip) == ("uoft-cs/cifar100", 100, True)
        assert cell.image_size == 32
        assert cell.teacher is None or cell.teacher.checkpoint.endswith("-224-in21k")
    if name == "fig5":
        for matrix in (small, paper):
            weights = [(cell.training.alpha1, cell.training.alpha2) for cell in matrix.cells]
            assert len(set(weights)) == 5
            assert all(one + two == pytest.approx(1) for one, two in weights)


def test_what_an_epoch_leaves_out_is_told_with_the_cells(kdbench, tiny):
    batches = ("--set", "axes.batch_size=[8, 10, 11, 12, 13]")
    told = kdbench("cells", "--matrix", tiny, *batches).err
    assert (
        "each epoch drops its last, incomplete batch: noise, 64 images in batches of 10: " in told
    )
    assert "batches of 10: 6 steps, 4 left out; " in told
    assert told.count("left out") == 3
    assert "and 1 more like it" in told
    assert "left out" not in kdbench("cells", "--matrix", tiny).err


@pytest.mark.parametrize("name", ["fig2", "fig3", "fig4", "fig5"])
def test_the_papers_teachers_see_what_the_published_code_shows_them(name):
    matrix = load_matrix(REPOSITORY / "benchmarks" / f"{name}.toml", preset="paper")
    taught = [cell.teacher for cell in matrix.cells if cell.teacher is not None]
    assert {teacher.weights for teacher in taught} == {"pretrained"}
    assert all(teacher.has_full_preprocessing for teacher in taught)
    assert {resolve_preprocessing(teacher, None) for teacher in taught} == {
        replace(CLIP, resize=224)
    }


# (data's settings in place of the synthetic ones, what is told)
NO_DATA = {
    "a misspelt folder": ('path = "pcis"', "data.path: no such file or folder, .*mean 'pics'"),
    "a path with a dot": ('path = "./pcis"', "data.path: no such file or folder, .*mean 'pics'"),
    "a deep path": ('path = "pcis/a/b"', "data.path: no such file or folder, .*mean 'pics'"),
    "a home": ('path = "~/pics"', "data.path: no such file or folder, .*write it out: /"),
    "a misspelt table": ('path = "tabel.parquet"', "data.path: no such file.*mean 'table.parquet'"),
    "an empty folder": ('path = "empty"', "data.path: expected .*found an empty folder: 'empty'"),
    "a folder of others": ('path = "other"', "data.path: expected .*found a folder without any"),
    "a file": ('path = "note.txt"', "data.path: expected a .parquet file .*'note.txt'"),
    "a device": ('path = "/dev/null"', "data.path: expected a .parquet file .*'/dev/null'"),
    "too deep": (
        'path = "pics/train"',
        "data.train_split: 'pics/train' has .* 'train'; the folders are 'cat'",
    ),
    "no such split": (
        'path = "pics"\ntrain_split = "trian"',
        "data.train_split: 'pics' has no folder for the split 'trian'; did you mean 'train'",
    ),
    "no such folder in it": (
        'path = "pics"\nconfig = "tset"',
        "data.config: no such folder: 'pics/tset'; did you mean 'test'",
    ),
}


@pytest.fixture
def data_folders(tmp_path):
    for folder in ("pics/train/cat", "pics/test/cat", "saved/train", "other", "empty"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("table.parquet", "saved/train/state.json", "other/x", "note.txt"):
        (tmp_path / file).touch()


def with_data(tiny, settings):
    tiny.write_text(TINY.replace('source = "synthetic"', f'source = "datasets"\n{settings}'))
    return load_matrix(tiny)


@pytest.mark.parametrize("case", NO_DATA)
@pytest.mark.usefixtures("data_folders")
def test_data_that_are_not_there_are_told_before_anything_runs(case, tiny):
    settings, told = NO_DATA[case]
    with pytest.raises(InputError, match=told):
        with_data(tiny, settings)


@pytest.mark.parametrize("path", ["pics", "pics/", "table.parquet", "saved", "owner/name"])
@pytest.mark.usefixtures("data_folders")
def test_data_that_may_be_there_are_left_to_the_cell(path, tiny):
    assert with_data(tiny, f'path = "{path}"').cells
