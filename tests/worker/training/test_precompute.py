"""What is computed before the first step: embeddings of classes and of images, and their cache."""

import json
from dataclasses import asdict

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from kdbench.common.errors import InputError
from kdbench.spec.cell import digest
from kdbench.worker.data.augment import prepare
from kdbench.worker.data.dataset import load_data
from kdbench.worker.events import Events
from kdbench.worker.models.teacher import random_vit
from kdbench.worker.probes import suspension
from kdbench.worker.probes.memory import Probes
from kdbench.worker.probes.suspension import DisturbedError
from kdbench.worker.training import precompute as precompute_module
from kdbench.worker.training.embedding_cache import (
    Cost,
    DamagedError,
    read_embeddings,
    write_embeddings,
)
from kdbench.worker.training.embeddings import plan_class_embeddings, plan_image_embeddings
from kdbench.worker.training.precompute import compute, recipe_of
from tests.conftest import TINY
from tests.support.models import tiny_run
from tests.worker.data.test_data import DIGITS

pytestmark = pytest.mark.usefixtures("forked_workers")

CPU = torch.device("cpu")


class Pixels(torch.nn.Module):
    """A teacher whose embedding is the first numbers of the image it sees; it keeps what it saw."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        return images.flatten(1)[:, :24]


def computed(cell, plan, teacher, budget=None):
    data = load_data(cell, device=CPU)
    return compute(plan(data), teacher, budget=budget, probes=Probes(CPU)), data


def test_class_embeddings_are_means_over_exactly_so_many_images(tmp_path):
    cell = tiny_run(
        tmp_path,
        "embed-kd",
        *DIGITS,
        "training.images_per_class=7",
        "training.precompute_batch_size=8",
    ).cell
    teacher = Pixels()
    done, data = computed(
        cell, lambda data: plan_class_embeddings(cell, data, device=CPU, seed=3), teacher
    )
    images = torch.cat(teacher.seen[1:])  # the first batch warms up
    assert (len(images), done.times.count, done.cost.kind) == (70, 9, "measured")
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
        plan_class_embeddings(
            cell, type(data)(short, data.test, len(short.labels)), device=CPU, seed=0
        )


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("batch", [7, 32])
def test_image_embeddings_are_of_every_image_and_its_mirror_image(flip, batch, tmp_path):
    cell = tiny_run(
        tmp_path,
        "cached-kd",
        *DIGITS,
        f"data.flip={str(flip).lower()}",
        f"training.precompute_batch_size={batch}",
    ).cell
    done, data = computed(
        cell, lambda data: plan_image_embeddings(cell, data, device=CPU), Pixels()
    )
    pixels = data.train.pixels
    assert done.embeddings.shape == (len(pixels), 2 if flip else 1, 24)
    sides = [pixels, pixels.flip(-1)][: 2 if flip else 1]
    for side, expected in enumerate(sides):
        wanted = prepare(expected, 16).flatten(1)[:, :24]
        torch.testing.assert_close(done.embeddings[:, side], wanted)
    assert done.times.count == done.cost.batches == len(sides) * -(-len(pixels) // batch)


def test_a_budget_cuts_the_image_embeddings_short(tmp_path):
    run = tiny_run(
        tmp_path,
        "cached-kd",
        *DIGITS,
        "data.flip=true",
        "training.precompute_batch_size=100",
        "budget.precompute_seconds=0.000001",
        "budget.precompute_min_batches=3",
    )
    done, data = computed(
        run.cell,
        lambda data: plan_image_embeddings(run.cell, data, device=CPU),
        Pixels(),
        budget=run.budget,
    )
    assert (done.times.count, done.cost.kind) == (3, "extrapolated")
    wanted = prepare(data.train.pixels[:300], 16).flatten(1)[:, :24]
    torch.testing.assert_close(done.embeddings[:300, 0], wanted)
    assert (done.embeddings[300:].abs().sum(dim=-1) > 0).all(), "filled at random"
    assert (done.embeddings[:, 1].abs().sum(dim=-1) > 0).all()


class Stopped(Pixels):
    """A teacher whose process is stopped and continued in some of its calls, the first is 0."""

    def __init__(self, *calls):
        super().__init__()
        self.calls = calls

    def forward(self, images):
        suspension._continues.count += len(self.seen) in self.calls
        return super().forward(images)


BATCHES = ("data.flip=false", "training.precompute_batch_size=32", "data.train_images=96")


def test_a_batch_that_was_suspended_is_embedded_and_not_timed(tmp_path):
    cell = tiny_run(tmp_path, "cached-kd", *DIGITS, *BATCHES).cell

    def embedded(teacher):
        def plan(data):
            return plan_image_embeddings(cell, data, device=CPU)

        return computed(cell, plan, teacher)[0]

    usual = embedded(Pixels())
    assert (usual.times.count, usual.cost.kind, len(usual.times.timed)) == (3, "measured", 1)
    assert usual.cost.seconds == usual.times.seconds
    # the call before the first batch warms up, and is in no time
    for calls, counted, spans in [((0,), 3, 1), ((2,), 2, 2), ((1, 2), 1, 1)]:
        done = embedded(Stopped(*calls))
        assert torch.equal(done.embeddings, usual.embeddings)
        assert (done.times.count, len(done.times.timed)) == (counted, spans)
        assert done.cost.kind == ("measured" if counted == 3 else "extrapolated")
        assert done.cost.seconds == pytest.approx(done.times.seconds / counted * 3)
    # where none is left, one is run again; what it gave is there already
    done = embedded(Stopped(1, 2, 3, 4))
    assert torch.equal(done.embeddings, usual.embeddings)
    assert (done.times.count, done.cost.kind) == (1, "extrapolated")
    with pytest.raises(DisturbedError, match="every batch of the precompute was suspended"):
        embedded(Stopped(*range(1000)))


def test_a_budget_is_for_the_batches_that_were_timed(tmp_path):
    budget = ("budget.precompute_seconds=0.000001", "budget.precompute_min_batches=1")
    run = tiny_run(tmp_path, "cached-kd", *DIGITS, *BATCHES, *budget)
    plan = lambda data: plan_image_embeddings(run.cell, data, device=CPU)  # noqa: E731
    teacher = Stopped(1)
    done, _ = computed(run.cell, plan, teacher, budget=run.budget)
    assert (done.times.count, done.cost.kind) == (1, "extrapolated")
    assert len(teacher.seen) == 3, "one to warm up, one that was suspended, and one"


def test_a_cost_that_was_extrapolated_is_told_so_by_who_reads_it(tmp_path):
    run = tiny_run(tmp_path, "cached-kd", *DIGITS, *BATCHES).model_copy(update={"mode": "train"})
    told = []
    for number, teacher in enumerate((Stopped(2), Stopped())):
        events = tmp_path / f"events{number}.jsonl"
        precompute_module.precompute(
            run,
            load_data(run.cell, device=CPU),
            teacher,
            probes=Probes(CPU),
            events=Events(events),
            cache=tmp_path,
            machine={},
        )
        lines = [json.loads(line) for line in events.read_text().splitlines()]
        told += [event for event in lines if event["event"] == "result"]
    first, again = told
    assert (first["precompute_reused"], again["precompute_reused"]) == (False, True)
    assert first["precompute_seconds_kind"] == again["precompute_seconds_kind"] == "extrapolated"
    assert first["precompute_seconds"] == again["precompute_seconds"]
    assert len(first["precompute_suspended_ns"]) == 1
    assert again["precompute_timed_ns"] is again["precompute_suspended_ns"] is None


def test_embeddings_that_memory_does_not_hold_are_refused(tmp_path, monkeypatch):
    run = tiny_run(tmp_path, "cached-kd", *DIGITS)
    monkeypatch.setattr(precompute_module, "free_bytes", lambda _: 1000)
    with pytest.raises(InputError, match=r"need [\d,]+ bytes, found 1,000 free on cpu; teacher-kd"):
        precompute_module.precompute(
            run,
            load_data(run.cell, device=CPU),
            Pixels(),
            probes=Probes(CPU),
            events=Events(tmp_path / "events.jsonl"),
            cache=tmp_path,
            machine={},
        )


def test_random_crops_and_kept_embeddings_exclude_each_other(tmp_path):
    with pytest.raises(InputError, match=r"data\.crop: the method 'cached-kd' keeps one embedding"):
        tiny_run(tmp_path, "cached-kd", "data.crop=[0.5, 1.0]")


TRAIN = (
    TINY.replace('mode = "profile"', 'mode = "train"')
    .replace('source = "synthetic"', 'source = "digits"')
    .replace("classes = 5", "classes = 10")
    .replace("train_images = 64", "train_images = 96\nflip = true")
    .replace("test_images = 16", "test_images = 32")
    .replace("batch_size = 8", "batch_size = 32\nepochs = 2\nlearning_rate = 3e-3")
)


@pytest.fixture
def trained(kdbench, tiny, tmp_path):
    """Train cells of the tiny digits; returns `cells` by label."""
    tiny.write_text(TRAIN)

    def call(out, *arguments):
        said = kdbench(
            "run", "--matrix", tiny, "--device", "cpu", "--out", tmp_path / out, *arguments
        )
        assert said.code == 0, said
        return pd.read_parquet(tmp_path / out / "tiny/cells").set_index("label")

    return call


def losses(root, label):
    cells = pd.read_parquet(root / "tiny/cells").set_index("label")
    steps = pd.read_parquet(root / "tiny/steps")
    own = steps[(steps["run_key"] == cells.loc[label, "run_key"]) & (steps["phase"] == "train")]
    return own.sort_values(["epoch", "step"])["loss"].tolist()


def test_cached_kd_learns_from_what_teacher_kd_learns_from(trained, tmp_path):
    cells = trained("results", "--set", 'axes.method=["teacher-kd", "cached-kd"]')
    slow, fast = (f"{method}/small/8px/dwarf" for method in ("teacher-kd", "cached-kd"))
    expected = losses(tmp_path / "results", slow)
    assert len(expected) == 6
    assert losses(tmp_path / "results", fast) == pytest.approx(expected, rel=1e-4)
    assert cells.loc[fast, "precompute_kept_bytes"] == 96 * 2 * 24 * 4
    assert cells.loc[fast, "parameter_bytes"] < cells.loc[slow, "parameter_bytes"]
    memory = pd.read_parquet(tmp_path / "results/tiny/memory")
    own = memory[memory["run_key"] == cells.loc[fast, "run_key"]]
    held = own[own["category"] == "teacher"]
    assert held["bytes"].tolist() == [96 * 2 * 24 * 4]
    assert held["module"].tolist() == ["image_embeddings"]


def test_embeddings_are_computed_once_and_their_cost_is_reported_by_all(trained, tmp_path):
    only, label = ("--set", 'axes.method="embed-kd"'), "embed-kd/small/8px/dwarf"
    first = trained("one", *only).loc[label]
    assert not first["precompute_reused"]
    # Another batch size trains other steps, from the same embeddings.
    again = trained("two", *only, "--set", "training.batch_size=16").loc[label]
    assert again["precompute_reused"]
    for column in ("key", "seconds", "seconds_kind", "kept_bytes", "peak_bytes"):
        assert again[f"precompute_{column}"] == first[f"precompute_{column}"], column
    phases = pd.read_parquet(tmp_path / "two/tiny/phases").set_index("phase")
    assert phases.loc["precompute", ["units", "units_total"]].tolist() == [0, 2]

    third = trained("three", *only).loc[label]
    assert third["precompute_reused"]
    assert losses(tmp_path / "one", label) == losses(tmp_path / "three", label), "to the bit"

    (path,) = (tmp_path / "cache/embeddings").glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    damaged = trained("four", *only).loc[label]
    assert not damaged["precompute_reused"]
    assert damaged["precompute_key"] == first["precompute_key"]
    log = (tmp_path / f"four/tiny/logs/{damaged['run_key']}.log").read_text()
    assert f"kept embeddings are computed anew, {path}: its numbers are not those" in log


def test_a_profile_measures_the_cost_itself(kdbench, tiny, tmp_path):
    for out in ("one", "two"):
        said = kdbench("run", "--matrix", tiny, "--device", "cpu", "--out", tmp_path / out)
        assert said.code == 0, said
    cells = pd.read_parquet(tmp_path / "two/tiny/cells").set_index("method")
    assert cells["precompute_reused"].to_dict() == {"embed-kd": False, "teacher-kd": None}
    assert cells["precompute_key"].isna().all(), "nothing is digested that nobody looks for"
    assert not (tmp_path / "cache/embeddings").exists()


def key(tmp_path, *assignments, method="embed-kd", machine="here", seed=0):
    made = DIGITS + assignments
    run = tiny_run(tmp_path, method, *made).model_copy(update={"seed": seed})
    data = load_data(run.cell, device=CPU)
    teacher = random_vit(run.cell.required_teacher, CPU)
    return digest(recipe_of(run, data, teacher, {"cpu_model": machine}))


def test_what_embeddings_depend_on_is_in_their_key(tmp_path):
    keys = [
        key(tmp_path),
        key(tmp_path, seed=1),
        key(tmp_path, machine="there"),
        key(tmp_path, method="cached-kd"),
        key(tmp_path, "training.images_per_class=3"),
        key(tmp_path, "training.precompute_batch_size=16"),
        key(tmp_path, "teachers.dwarf.image_size=8"),
        key(tmp_path, "teachers.dwarf.depth=2"),
        key(tmp_path, "data.train_images=639"),
    ]
    assert len(set(keys)) == len(keys)


def test_what_they_do_not_depend_on_is_not(tmp_path):
    alike = {
        key(tmp_path),
        key(tmp_path, "training.batch_size=4"),
        key(tmp_path, "training.alpha2=0.1"),
        key(tmp_path, 'data.name="other"'),
        key(tmp_path, "students.small.depth=1"),
        key(tmp_path, "data.flip=true"),
    }
    assert len(alike) == 1
    flipped = {key(tmp_path, f"data.flip={flip}", method="cached-kd") for flip in ("true", "false")}
    assert len(flipped) == 2, "cached-kd keeps mirror images as well"
    assert len({key(tmp_path, method="cached-kd", seed=seed) for seed in (0, 1)}) == 1, (
        "it embeds every image, whatever the seed"
    )


RECIPE = {"kind": "class-embeddings", "seed": 0, "data": ["a", 1]}
COST = Cost(seconds=1.5, batches=3, peak_bytes=1000)


def test_what_is_written_is_read(tmp_path):
    path, tensor = tmp_path / "some" / "where.safetensors", torch.randn(3, 4)
    assert read_embeddings(path, RECIPE, (3, 4)) is None
    write_embeddings(path, RECIPE, tensor, COST)
    found, cost = read_embeddings(path, RECIPE, (3, 4))
    assert torch.equal(found, tensor)
    assert cost == COST
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def spoil(path, **changes):
    with safe_open(path, framework="pt") as file:
        header, tensor = json.loads(file.metadata()["kdbench"]), file.get_tensor("embeddings")
    tensor = changes.pop("tensor", tensor)
    save_file({"embeddings": tensor}, path, metadata={"kdbench": json.dumps(header | changes)})


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(path.read_bytes()[:-8]), "cannot be read"),
        (lambda path: save_file({"embeddings": torch.zeros(3, 4)}, path), "cannot be read"),
        (lambda path: spoil(path, recipe={"kind": "other"}), "made from something else"),
        (lambda path: spoil(path, cost={"price": 1}), "cannot be read"),
        (
            lambda path: spoil(path, cost=asdict(COST) | {"kind": "x"}),
            "'measured' or 'extrapolated'",
        ),
        (lambda path: spoil(path, tensor=torch.zeros(3, 4)), "not those that were written"),
        (lambda path: spoil(path, tensor=torch.zeros(3, 5)), "expected float32"),
        (lambda path: spoil(path, tensor=torch.zeros(3, 4).half()), "expected float32"),
    ],
)
def test_a_file_that_is_something_else_is_not_believed(damage, told, tmp_path):
    path = tmp_path / "e.safetensors"
    write_embeddings(path, RECIPE, torch.randn(3, 4), COST)
    damage(path)
    with pytest.raises(DamagedError, match=told):
        read_embeddings(path, RECIPE, (3, 4))
