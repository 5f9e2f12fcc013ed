"""Teachers from checkpoints: read whole and at a commit, or refused with what to do about it."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import huggingface_hub
import pandas as pd
import pytest
import torch
from transformers import BertConfig, DeiTConfig
from transformers.utils import logging as transformers_logging

from kdbench.common.errors import InputError
from kdbench.worker.models.teacher import load_teacher
from tests.support.checkpoints import (
    IMAGES,
    pretrained,
    put_on_hub,
    rewrite_weights,
    write_classifier,
    write_embedder,
)
from tests.support.image_sets import write_pictures

CPU = torch.device("cpu")
FIRST, SECOND = "1" * 40, "2" * 40


def load(tmp_path, checkpoint, *assignments):
    return load_teacher(pretrained(tmp_path, checkpoint, *assignments), device=CPU, cache=tmp_path)


def refused(tmp_path, checkpoint, *assignments):
    """What an error says of a checkpoint."""
    with pytest.raises(InputError) as caught:
        load(tmp_path, checkpoint, *assignments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def class_tokens(model):
    with torch.no_grad():
        return model(pixel_values=IMAGES.to(model.dtype)).last_hidden_state[:, 0]


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_a_local_checkpoint(tmp_path):
    model = write_embedder(tmp_path / "vit")
    teacher = load(tmp_path, tmp_path / "vit")
    assert torch.equal(teacher(IMAGES), class_tokens(model))
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert teacher.revision is None


def test_features_agree_with_a_float64_reference(tmp_path):
    model = write_embedder(tmp_path / "vit")
    features = load(tmp_path, tmp_path / "vit")(IMAGES)
    exact = class_tokens(model.double())
    torch.testing.assert_close(features.double(), exact, rtol=1e-4, atol=1e-5)
    assert exact.std() > 0.1


def test_weights_saved_in_half_precision_are_read_as_the_others_are(tmp_path):
    model = write_embedder(tmp_path / "vit", dtype="float16")
    model.half().save_pretrained(tmp_path / "vit")
    teacher = load(tmp_path, tmp_path / "vit")
    assert {parameter.dtype for parameter in teacher.parameters()} == {torch.float32}
    assert torch.equal(teacher(IMAGES), class_tokens(model.float()))


def test_shards_are_read(tmp_path):
    model = write_embedder(tmp_path / "vit", shards="10KB")
    assert not (tmp_path / "vit" / "model.safetensors").exists()
    assert torch.equal(load(tmp_path, tmp_path / "vit")(IMAGES), class_tokens(model))


def test_an_embedder_from_a_classifiers_checkpoint(tmp_path):
    model = write_classifier(tmp_path / "vit")
    teacher = load(tmp_path, tmp_path / "vit")
    assert torch.equal(teacher(IMAGES), class_tokens(model.vit))


def test_a_pooler_is_kept_where_there_is_one_and_never_made_up(tmp_path):
    for folder, write, pooler in (
        ("bare", write_embedder, 24 * 24 + 24),
        ("without", lambda path: write_embedder(path, pooler=False), 0),
        ("classifier", lambda path: write_classifier(path).vit, 0),
    ):
        model = write(tmp_path / folder)
        teacher = load(tmp_path, tmp_path / folder)
        assert count(teacher) == count(model)
        held = [p.numel() for name, p in teacher.named_parameters() if "pooler" in name]
        assert sum(held) == pooler


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"hidden_size": 12, "intermediate_size": 48},
            "dwarf.width: the matrix file says hidden_size = 24, the checkpoint has 12",
        ),
        ({"num_hidden_layers": 2}, "dwarf.depth: the matrix file says num_hidden_layers = 1, the"),
        ({"num_attention_heads": 3}, "dwarf.heads: the matrix file says num_attention_heads = 2"),
        ({"patch_size": 4}, "dwarf.patch_size: the matrix file says patch_size = 8, the check"),
        ({"image_size": 32}, "dwarf.image_size: the matrix file says image_size = 16, the check"),
        ({"num_channels": 1}, "dwarf.checkpoint: expected num_channels = 3, the checkpoint has 1"),
    ],
)
def test_a_checkpoint_of_another_shape(tmp_path, changes, told):
    write_embedder(tmp_path / "vit", **changes)
    assert told in refused(tmp_path, tmp_path / "vit")


@pytest.mark.parametrize("pooler", [True, False])
def test_a_weight_that_is_missing_is_not_drawn_at_random(tmp_path, pooler):
    write_embedder(tmp_path / "vit", pooler=pooler)
    lost = []

    def lose(weights):
        lost.append(next(name for name in weights if name.endswith("dense.weight")))
        del weights[lost[0]]

    rewrite_weights(tmp_path / "vit", lose)
    told = refused(tmp_path, tmp_path / "vit")
    total = 24 if pooler else 22
    assert f"checkpoint: the checkpoint is partial: it lacks 1 of {total} weights, such" in told
    assert told.endswith("copy the folder again, or save it again with save_pretrained")


def test_weights_that_config_json_does_not_describe(tmp_path):
    write_embedder(tmp_path / "vit")

    def shorten(weights):
        weights["layernorm.weight"] = weights["layernorm.weight"][:20].clone()

    rewrite_weights(tmp_path / "vit", shorten)
    told = refused(tmp_path, tmp_path / "vit")
    assert "config.json means 'layernorm.weight' to be (24,), its weights are (20,); copy" in told


def test_a_shard_that_is_missing(tmp_path):
    write_embedder(tmp_path / "vit", shards="10KB")
    lost = sorted((tmp_path / "vit").glob("model-*.safetensors"))[1]
    lost.unlink()
    told = refused(tmp_path, tmp_path / "vit")
    problem = f"cannot read the weights: {lost.name}: FileNotFoundError"
    assert f"teachers.dwarf.checkpoint: {problem}" in told
    assert "copy the folder again" in told


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_damaged_file_of_weights(tmp_path, kept):
    write_embedder(tmp_path / "vit")
    path = tmp_path / "vit" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])
    told = refused(tmp_path, tmp_path / "vit")
    problem = "cannot read the weights: model.safetensors: "
    assert f"teachers.dwarf.checkpoint: {problem}" in told
    assert "copy the folder again" in told


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12345\n"


def without_weights(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def swap_bytes(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def lose(name):
    return lambda folder: rewrite_weights(folder, lambda weights: weights.pop(name))


def wrap(prefix):
    """Name the weights as those of a model that something is wrapped around."""

    def change(weights):
        for name in list(weights):
            weights[prefix + name] = weights.pop(name)

    return lambda folder: rewrite_weights(folder, change)


# what is wrong with a folder, and what is said of it
REFUSED = {
    "wrapped": (
        wrap("module."),
        "expected weights named encoder.layer.0. and so on, found 'module.encoder.layer.0.",
    ),
    "compiled": (
        wrap("_orig_mod.vit."),
        "save the model itself, not what is wrapped around it: `.module` of DistributedDataPa",
    ),
    "model": (
        lambda folder: rewrite_config(folder, model_type="vit_msn"),
        "expected model_type 'vit' in config.json, found 'vit_msn'; a teacher is a ViT, such as g",
    ),
    "width": (
        lambda folder: write_embedder(folder, hidden_size=12),
        "teachers.dwarf.width: the matrix file says hidden_size = 24, the checkpoint has 12",
    ),
    "mlp": (
        lambda folder: rewrite_config(folder, intermediate_size=48),
        "config.json means 'encoder.layer.0.intermediate.dense.bias' to be (48,), its weights",
    ),
    "activation": (
        lambda folder: rewrite_config(folder, hidden_act="evil"),
        "expected 'gelu', 'gelu_10'",
    ),
    "partial": (
        lose("layernorm.bias"),
        "the checkpoint is partial: it lacks 1 of 24 weights, such",
    ),
    "cut off": (swap_bytes, "cannot read the weights: model.safetensors: expected "),
    "pickled": (without_weights, "expected model.safetensors, found none; pickled weights are not"),
    "unfetched weights": (
        lambda folder: (folder / "model.safetensors").write_text(POINTER),
        "expected model.safetensors itself, found a git-LFS pointer to it; `git lfs pull` in ",
    ),
    "unfetched configuration": (
        lambda folder: (folder / "config.json").write_text(POINTER),
        "expected config.json itself, found a git-LFS pointer to it; `git lfs pull` in ",
    ),
    "pixels": (
        lambda folder: (folder / "preprocessor_config.json").write_text('{"size": 224}'),
        "teachers.dwarf.resize: expected 16, as image_size of the teacher is for size in preproce",
    ),
}


def rewrite_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("fault", REFUSED)
def test_every_command_refuses_alike_and_starts_nothing(
    fault, kdbench, tiny, tmp_path, monkeypatch
):
    def start(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr("subprocess.Popen", start)
    break_it, told = REFUSED[fault]
    write_embedder(tmp_path / "vit")
    break_it(tmp_path / "vit")
    text = tiny.read_text().replace(
        "[teachers.dwarf]",
        f'[teachers.dwarf]\nweights = "pretrained"\ncheckpoint = "{tmp_path / "vit"}"',
    )
    tiny.write_text(text)
    check = ("check", "--baseline", tmp_path / "baseline.txt", "--update")
    said = [
        kdbench(*command, "--matrix", tiny)
        for command in (("cells",), ("run", "--device", "cpu"), ("predict",), check)
    ]
    assert {one.code for one in said} == {2}
    (error,) = {one.err for one in said}
    assert told in error
    assert error.count("\n") == 1
    assert not any(one.out for one in said)


def test_a_classifier_of_other_classes_is_refused_as_early(kdbench, tiny, tmp_path):
    write_classifier(tmp_path / "vit", classes=7)
    settings = (
        'teachers.dwarf.weights="pretrained"',
        f'teachers.dwarf.checkpoint="{tmp_path / "vit"}"',
    )
    words = [word for setting in settings for word in ("--set", setting)]
    assert kdbench("cells", "--matrix", tiny, *words).code == 0  # an embedder
    said = kdbench("cells", "--matrix", tiny, *words, "--set", 'axes.method="vanilla-kd"')
    assert (said.code, "found one of 7; fine-tune one" in said.err) == (2, True)


def test_an_image_size_may_be_a_list(tmp_path):
    model = write_embedder(tmp_path / "vit")
    rewrite_config(tmp_path / "vit", image_size=[16, 16], patch_size=[8, 8])
    assert torch.equal(load(tmp_path, tmp_path / "vit")(IMAGES), class_tokens(model))


@pytest.mark.parametrize("config", [BertConfig, DeiTConfig])
def test_another_architecture_is_told_before_any_weights_are_read(tmp_path, config):
    config().save_pretrained(tmp_path / "other")
    told = refused(tmp_path, tmp_path / "other")  # there are no weights to be read
    assert f"expected model_type 'vit' in config.json, found {config.model_type!r}; a tea" in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "checkpoint: expected a folder with config.json, found none; save_pretrained w"),
        ('{"model_type": "vit"', "checkpoint: cannot read config.json: JSONDecodeError: Expecting"),
        ("\udcff", "checkpoint: cannot read config.json: UnicodeDecodeError: "),
        ("[]", "checkpoint: expected model_type 'vit' in config.json, found None; a teacher is"),
        ("{}", "checkpoint: expected model_type 'vit' in config.json, found None; a teacher is"),
        (
            '{"model_type": "vit", "id2label": {"first": "a"}}',
            "checkpoint: expected numbers as keys of id2label in config.json, found 'first'",
        ),
    ],
)
def test_a_broken_configuration(tmp_path, text, told):
    write_embedder(tmp_path / "vit")
    path = tmp_path / "vit" / "config.json"
    path.unlink()
    if text is not None:
        path.write_bytes(text.encode(errors="surrogateescape"))
    assert told in refused(tmp_path, tmp_path / "vit")


def test_a_file_is_no_folder(tmp_path):
    write_embedder(tmp_path / "vit")
    told = refused(tmp_path, tmp_path / "vit" / "model.safetensors")
    assert "checkpoint: expected a folder with config.json, found none" in told


def test_pickled_weights_are_refused(tmp_path):
    model = write_embedder(tmp_path / "vit")
    (tmp_path / "vit" / "model.safetensors").unlink()
    torch.save(model.state_dict(), tmp_path / "vit" / "pytorch_model.bin")
    told = refused(tmp_path, tmp_path / "vit")
    assert "checkpoint: expected model.safetensors, found none; pickled weights are not" in told


def test_code_in_a_checkpoint_is_not_run(tmp_path):
    model = write_embedder(tmp_path / "vit")
    path = tmp_path / "vit" / "config.json"
    classes = {"AutoConfig": "modeling.Config", "AutoModel": "modeling.Model"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"auto_map": classes}))
    (tmp_path / "vit" / "modeling.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert torch.equal(load(tmp_path, tmp_path / "vit")(IMAGES), class_tokens(model))
    assert not (tmp_path / "ran").exists()


def test_transformers_may_speak_again_afterwards(tmp_path):
    write_classifier(tmp_path / "vit")
    before = transformers_logging.get_verbosity()
    load(tmp_path, tmp_path / "vit")
    assert transformers_logging.get_verbosity() == before
    assert transformers_logging.is_progress_bar_enabled()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The hub's cache; its library read where it is when it was imported."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def test_the_commit_of_a_checkpoint_comes_with_it(tmp_path, cache):
    """A branch, a tag and a commit: each with its own weights."""
    models = {}
    for seed, (commit, ref) in enumerate(((FIRST, "main"), (SECOND, "v2"))):
        models[commit] = write_embedder(tmp_path / commit, seed=seed)
        put_on_hub(cache, "some/vit", tmp_path / commit, commit=commit, refs=(ref,))
    for revision, commit in ((None, FIRST), ("main", FIRST), ("v2", SECOND), (SECOND, SECOND)):
        chosen = () if revision is None else (f'teachers.dwarf.revision="{revision}"',)
        teacher = load(tmp_path, "some/vit", *chosen)
        assert teacher.revision == commit
        assert torch.equal(teacher(IMAGES), class_tokens(models[commit]))


def test_a_revision_that_is_not_in_the_cache(tmp_path, cache):
    write_embedder(tmp_path / "vit")
    put_on_hub(cache, "some/vit", tmp_path / "vit", commit=FIRST)
    put_on_hub(cache, "some/vit", tmp_path / "vit", commit=SECOND, refs=())
    told = refused(tmp_path, "some/vit", 'teachers.dwarf.revision="v3"')
    assert told == (
        "some/vit: teachers.dwarf.revision: the revision 'v3' is not in the cache, which has "
        f"'{SECOND}', 'main'; where there is network: hf download some/vit --revision v3"
    )


def test_an_absent_checkpoint_says_what_to_fetch(tmp_path, cache):
    told = refused(tmp_path, "nobody/nothing")
    assert told.startswith("nobody/nothing: teachers.dwarf.checkpoint: cannot load the checkpoint")
    assert told.endswith("where there is network: hf download nobody/nothing")
    cache.mkdir()
    told = refused(tmp_path, "nobody/nothing", 'teachers.dwarf.revision="v3"')
    assert told.startswith("nobody/nothing: teachers.dwarf.checkpoint: cannot load the checkpoint")
    assert told.endswith("hf download nobody/nothing --revision v3")


@pytest.mark.parametrize(
    ("shards", "told"),
    [(None, "found no model.safetensors of this revision"), ("10KB", "cannot read the weights: ")],
)
def test_a_download_that_is_not_whole(tmp_path, cache, shards, told):
    write_embedder(tmp_path / "vit", shards=shards)
    snapshot = put_on_hub(cache, "some/vit", tmp_path / "vit", commit=FIRST)
    sorted(snapshot.glob("*.safetensors"))[-1].unlink()
    problem = refused(tmp_path, "some/vit")
    assert problem.startswith(f"some/vit: teachers.dwarf.checkpoint: {told}")
    assert f"hf download some/vit --revision {FIRST} --force-download" in problem


class Hub(BaseHTTPRequestHandler):
    """Answers as the hub does, for the repository some/vit with the branches main and empty."""

    def do_HEAD(self):
        known, revision = self.path.startswith("/some/vit/"), self.path.split("/")[-2]
        code = None if known else "RepoNotFound"
        if known and revision != "main":
            code = "EntryNotFound" if revision == "empty" else "RevisionNotFound"
        self.send_response(200 if code is None else 404)
        for name, value in (
            ("X-Error-Code", code),
            ("X-Repo-Commit", FIRST if known else None),
            ("ETag", '"0"'),
            ("Content-Length", str(len(CONFIG)) if code is None else "0"),
        ):
            if value is not None:
                self.send_header(name, value)
        self.end_headers()

    def do_GET(self):
        self.do_HEAD()
        self.wfile.write(CONFIG)

    def log_message(self, *_):
        pass


CONFIG = b'{"model_type": "vit"}'
ASK = """
import sys
from kdbench.spec.settings import Teacher
from kdbench.common.errors import InputError
from kdbench.worker.models.hub import find_checkpoint
for asked in sys.argv[1:]:
    name, _, revision = asked.partition("@")
    shape = Teacher(
        patch_size=8, width=8, depth=1, heads=1, checkpoint=name, revision=revision or None
    )
    try:
        found = find_checkpoint(shape, "teachers.dwarf")
        print(found.revision, (found.folder / "config.json").read_text())
    except InputError as error:
        print(error)
"""


def test_what_the_hub_itself_answers(tmp_path):
    """Its library, in a process of its own, asks a server of ours."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        asked = subprocess.run(
            [sys.executable, "-c", ASK, "some/vit", "some/vit@v3", "some/vit@empty", "no/vit"],
            env={
                **os.environ,
                "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
                "HF_HUB_OFFLINE": "0",
            },
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=280,
        )
        server.shutdown()
    found, revision, entry, repository = asked.stdout.splitlines()
    assert found == f"{FIRST} {CONFIG.decode()}"
    assert revision.startswith(
        "some/vit: teachers.dwarf.revision: the repository has no revision 'v3'; expected a branch"
    )
    assert entry.startswith(
        "some/vit: teachers.dwarf.checkpoint: the repository has no config.json; expected a ViT"
    )
    assert repository.startswith(
        "no/vit: teachers.dwarf.checkpoint: cannot load the checkpoint: RepositoryNotFoundError"
    )


def test_the_commit_and_where_the_images_are_come_into_the_table(
    kdbench, tiny, tmp_path, monkeypatch
):
    """Through the command line: the worker finds the hub's cache by the environment alone."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    write_classifier(tmp_path / "vit")
    put_on_hub(tmp_path / "hf" / "hub", "some/vit", tmp_path / "vit", commit=FIRST)
    write_pictures(tmp_path / "set")
    settings = (
        'teachers.dwarf.weights="pretrained"',
        'teachers.dwarf.checkpoint="some/vit"',
        'data.source="datasets"',
        f'data.path="{tmp_path / "set"}"',
        'data.storage="stream"',
        "data.train_images=12",
        "data.test_images=6",
    )
    said = kdbench(
        "run",
        "--matrix",
        tiny,
        "--device",
        "cpu",
        "--only",
        "method=embed-kd",
        *(word for setting in settings for word in ("--set", setting)),
    )
    assert said.code == 0, said
    root = tmp_path / "results" / "tiny"
    (cell,) = pd.read_parquet(root / "cells").to_dict("records")
    assert (cell["teacher_revision"], cell["data_storage"]) == (FIRST, "stream")
    (log,) = (root / "logs").glob("*.log")
    # of the accounting step's oracle, which tells when it begins and ends
    assert [line for line in log.read_text().splitlines() if "profiler" not in line] == []


def test_nothing_read_has_no_commit(finished):
    cells = pd.read_parquet(finished / "tiny" / "cells")
    assert cells["teacher_revision"].isna().all()
    assert set(cells["data_storage"]) == {"device"}


@pytest.mark.parametrize("name", ["t/vitt", "google/vit"])
def test_a_path_with_a_mistake_in_it_is_not_taken_for_a_name_in_silence(
    kdbench, tiny, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t" / "vit").mkdir(parents=True)
    settings = ('teachers.dwarf.weights="pretrained"', f'teachers.dwarf.checkpoint="{name}"')
    said = kdbench(
        *("predict", "--matrix", tiny, "--only", "method=embed-kd"),
        *(word for setting in settings for word in ("--set", setting)),
    )
    assert said.code == 0, said
    assert ("there is no t/vitt here" in said.out) == (name == "t/vitt")
    assert "was not read" in said.out
