"""Data sets, checkpoints and caches from other people, as the measured process meets them."""

import gzip
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from kdbench.common.errors import InputError
from kdbench.worker.checkpoints.durable import durably
from kdbench.worker.checkpoints.resume import Checkpoints
from kdbench.worker.data import dataset as data_module
from kdbench.worker.data.dataset import check_room
from kdbench.worker.data.images import load_images
from kdbench.worker.data.sources import open_sources
from kdbench.worker.data.untrusted import check_local, check_parquet
from kdbench.worker.events import Events
from kdbench.worker.models.pretrained import read_pretrained
from kdbench.worker.models.teacher import fitted_path, read_fitted
from kdbench.worker.secrets import Secrets
from kdbench.worker.training.embedding_cache import (
    Cost,
    DamagedError,
    read_embeddings,
    write_embeddings,
)
from tests.conftest import TINY
from tests.support import REPOSITORY
from tests.support.checkpoints import pretrained, write_embedder
from tests.support.image_sets import image_run, write_parquet, write_pictures
from tests.support.models import tiny_run


def opened(tmp_path, path, *assignments):
    data = image_run(tmp_path, path, *assignments).cell.data
    load_images(open_sources(data), side=data.image_size, workers=0)


def saved(tmp_path):
    """A data set as `save_to_disk` writes it, of 12 and 6 pictures in 5 classes."""
    write_parquet(tmp_path / "parquet")
    parts = {
        split: datasets.Dataset.from_parquet(
            [str(p) for p in sorted((tmp_path / "parquet").rglob(f"{split}*.parquet"))],
            cache_dir=str(tmp_path / "hf"),
        )
        for split in ("train", "test")
    }
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "set"))
    return tmp_path / "set"


def rewrite(path, change):
    held = json.loads(path.read_text())
    change(held)
    path.write_text(json.dumps(held))


# -------------------------------------------------------------------------------- data sets


@pytest.mark.parametrize("name", ["../../other/data.arrow", "/etc/hostname", "a/b.arrow"])
def test_a_saved_split_names_no_file_elsewhere(name, tmp_path):
    folder = saved(tmp_path)
    rewrite(folder / "train" / "state.json", lambda s: s["_data_files"][0].update(filename=name))
    with pytest.raises(InputError, match="expected names of files beside it"):
        opened(tmp_path, folder)


def test_a_saved_split_whose_file_is_a_pipe_is_not_waited_for(tmp_path):
    folder = saved(tmp_path)
    (arrow,) = (folder / "train").glob("*.arrow")
    arrow.unlink()
    os.mkfifo(arrow)
    with pytest.raises(InputError, match="cannot load the data set"):
        opened(tmp_path, folder)


@pytest.mark.parametrize("kind", ["numpy", "pandas", "custom", "torch", "jax", "evil.module"])
def test_the_format_of_a_saved_split_is_not_taken_over(kind, tmp_path):
    folder = saved(tmp_path)
    rewrite(folder / "train" / "state.json", lambda s: s.update(_format_type=kind))
    try:
        opened(tmp_path, folder)
    except InputError as error:
        assert str(error).isprintable()  # noqa: PT017 - either will do


@pytest.mark.parametrize(
    "change",
    [
        lambda s: s.update(_data_files="x"),
        lambda s: s.update(_data_files=[{}]),
        lambda s: s.update(_fingerprint={"a": 1}),
        lambda s: s.clear(),
    ],
)
def test_a_damaged_state_is_told(change, tmp_path):
    folder = saved(tmp_path)
    rewrite(folder / "train" / "state.json", change)
    try:
        opened(tmp_path, folder)
    except InputError as error:
        assert str(error).isprintable()  # noqa: PT017 - a fingerprint may be anything


def test_offsets_that_point_elsewhere_are_told(tmp_path):
    folder = saved(tmp_path)
    (arrow,) = (folder / "train").glob("*.arrow")
    whole = arrow.read_bytes()
    table = pa.ipc.open_stream(whole).read_all()
    binary = table.column(0).combine_chunks().field("bytes") if table.num_columns else None
    offsets = bytes(binary.buffers()[1])[: 4 * (len(binary) + 1)]
    broken = np.frombuffer(offsets, np.int32).copy()
    broken[1:] += 2**28
    assert offsets in whole
    arrow.write_bytes(whole.replace(offsets, broken.tobytes(), 1))
    with pytest.raises(InputError, match=r"damaged|cannot load"):
        opened(tmp_path, folder)


def as_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.parquet", b"PAR1")


@pytest.mark.parametrize(
    "write",
    [
        as_zip,
        lambda path: path.write_bytes(gzip.compress(path.read_bytes())),
        lambda path: path.write_bytes(pickle.dumps([1])),
        lambda path: path.write_bytes(b"PAR1" + b"\xff" * 100),
        lambda path: path.write_bytes(b""),
    ],
)
def test_what_is_called_parquet_and_is_not_is_not_unpacked(write, tmp_path):
    folder = write_parquet(tmp_path / "set")
    part = next(iter(sorted(folder.rglob("train*.parquet"))))
    write(part)
    with pytest.raises(InputError, match="expected a parquet file, found another or a damaged"):
        opened(tmp_path, folder)


def test_a_table_that_has_no_room_is_not_read(tmp_path, monkeypatch):
    path = tmp_path / "bomb.parquet"
    pq.write_table(pa.table({"img": pa.array([b"x" * 1000] * 10_000)}), path, use_dictionary=False)
    check_parquet([path], key="data.path", cache=tmp_path)
    free = type("Free", (), {"free": 10_000})()
    monkeypatch.setattr("kdbench.worker.data.untrusted.shutil.disk_usage", lambda _: free)
    with pytest.raises(InputError, match="found 10,000 free"):
        check_parquet([path], key="data.path", cache=tmp_path)


@pytest.mark.parametrize("name", ["zip::x", "a::b.parquet"])
def test_a_chain_of_file_systems_is_no_path(name, tmp_path):
    with pytest.raises(InputError, match="without '::'"):
        check_local(tmp_path / name)


PICTURE = pa.struct({"bytes": pa.binary(), "path": pa.string()})
KINDS = pa.schema({"img": PICTURE, "label": pa.int64()})


@pytest.mark.parametrize("leads", ["absolute", "up", "link"])
def test_a_row_names_no_picture_elsewhere(leads, tmp_path):
    private = tmp_path / "private.png"
    Image.new("RGB", (8, 8)).save(private)
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "link.png").symlink_to(private)
    Image.new("RGB", (8, 8)).save(folder / "own.png")
    path = {"absolute": str(private), "up": "../private.png", "link": "link.png"}[leads]

    def write(first):
        for split, count in (("train", 12), ("test", 6)):
            rows = [{"bytes": None, "path": first}] + [{"bytes": None, "path": "own.png"}] * count
            table = {"img": rows[:count], "label": [n % 5 for n in range(count)]}
            pq.write_table(pa.Table.from_pydict(table, schema=KINDS), folder / f"{split}.parquet")

    write("own.png")
    opened(tmp_path, folder)
    write(path)
    with pytest.raises(InputError, match="which is no file here"):
        opened(tmp_path, folder)


def test_a_pipe_among_pictures_is_passed_over(tmp_path):
    folder = write_pictures(tmp_path / "set")
    os.mkfifo(folder / "train" / "a" / "pipe.png")
    opened(tmp_path, folder)


def test_images_that_memory_does_not_hold_are_refused_before_it_is_filled(tmp_path, monkeypatch):
    monkeypatch.setattr(data_module, "free_bytes", lambda _: 1000)
    check_room(1000)
    with pytest.raises(MemoryError, match="found 1000 free"):
        data_module.load_data(tiny_run(tmp_path).cell, device=torch.device("cpu"))


# ------------------------------------------------------------------------------- checkpoints


def refused(tmp_path, folder):
    """What an error says of a checkpoint, before anything is started."""
    with pytest.raises(InputError) as caught:
        pretrained(tmp_path, folder)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize(
    "extra",
    [
        {"attn_implementation": "nobody/kernel"},
        {"_attn_implementation": "nobody/kernel", "use_kernels": True},
        {"auto_map": {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}},
        {"quantization_config": {"quant_method": "evil", "load_in_4bit": True}},
        {"output_attentions": True, "torch_dtype": "evil", "dtype": "evil"},
        {"name_or_path": "/etc", "per_layer_config": {"0": {}}},
    ],
)
def test_a_configuration_has_nothing_else_loaded(extra, tmp_path):
    folder = tmp_path / "vit"
    write_embedder(folder)
    caught = tmp_path / "caught"
    (folder / "evil.py").write_text(f"open({str(caught)!r}, 'w')")
    rewrite(folder / "config.json", lambda held: held.update(extra))
    model, _, _ = read_pretrained(pretrained(tmp_path, folder))
    assert model.config.num_hidden_layers == 1
    assert not caught.exists()


@pytest.mark.parametrize(
    ("extra", "told"),
    [
        ({"intermediate_size": 10**12}, "expected at most 1048576 for intermediate_size"),
        ({"pooler_output_size": 10**12}, "expected at most 1048576 for pooler_output_size"),
        # transformers names each of them as soon as it hears of their number
        ({"num_labels": 10**12}, "expected at most 1000000 for num_labels"),
        ({"num_labels": -1}, "expected at least 0 for num_labels in config.json, found -1"),
        ({"num_labels": "x"}, "expected an integer for num_labels in config.json, found 'x'"),
        ({"hidden_act": "evil"}, "evil"),
    ],
)
def test_sizes_of_a_configuration_are_checked_before_they_are_allocated(extra, told, tmp_path):
    folder = tmp_path / "vit"
    write_embedder(folder)
    rewrite(folder / "config.json", lambda held: held.update(extra))
    assert told in refused(tmp_path, folder)


@pytest.mark.parametrize("name", ["../other/model.safetensors", "/dev/zero", 3])
def test_shards_lie_beside_their_index(name, tmp_path):
    folder = tmp_path / "vit"
    write_embedder(folder, shards="10KB")
    index = folder / "model.safetensors.index.json"
    rewrite(index, lambda held: held["weight_map"].update({"layernorm.weight": name}))
    assert "expected names of files beside it" in refused(tmp_path, folder)


def test_nesting_without_end_is_told(tmp_path):
    folder = tmp_path / "vit"
    write_embedder(folder)
    (folder / "config.json").write_text("[" * 100_000)
    assert "cannot read config.json: RecursionError" in refused(tmp_path, folder)


def test_an_adapter_is_no_teacher(tmp_path):
    folder = tmp_path / "vit"
    write_embedder(folder)
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "nobody/evil"}')
    assert "found an adapter" in refused(tmp_path, folder)


def test_a_pickle_is_not_read(tmp_path):
    folder = tmp_path / "vit"
    write_embedder(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert "pickled weights are not read" in refused(tmp_path, folder)


# ---------------------------------------------------------------------- caches and results


@pytest.mark.parametrize(
    "cost",
    [
        {"seconds": "1", "batches": 3, "peak_bytes": 1},
        {"seconds": float("nan"), "batches": 3, "peak_bytes": 1},
        {"seconds": 1.0, "batches": 3, "peak_bytes": 10**400},
        {"seconds": 1.0, "batches": -3, "peak_bytes": 1},
        [],
    ],
)
def test_what_the_cache_says_it_cost_is_checked(cost, tmp_path):
    path, recipe = tmp_path / "e.safetensors", {"kind": "x"}
    write_embeddings(path, recipe, torch.zeros(2, 3), Cost(1.0, 3, 10))
    with safe_open(path, framework="pt") as file:
        header, tensor = json.loads(file.metadata()["kdbench"]), file.get_tensor("embeddings")
    header["cost"] = cost
    save_file({"embeddings": tensor}, path, metadata={"kdbench": json.dumps(header)})
    with pytest.raises(DamagedError, match="cannot be read"):
        read_embeddings(path, recipe, (2, 3))


def test_a_pipe_in_the_cache_is_none_of_a_teacher(tmp_path):
    cell = tiny_run(tmp_path).cell
    path = fitted_path(cell, tmp_path)
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    assert read_fitted(cell, tmp_path) is None


@pytest.mark.parametrize("linked", ["run", "all"])
def test_checkpoints_are_not_written_through_a_link(linked, tmp_path):
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "checkpoints" / "key"
    elsewhere.mkdir()
    link = folder if linked == "run" else folder.parent
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(elsewhere)
    with pytest.raises(InputError, match="found a link"):
        Checkpoints(folder, tiny_run(tmp_path), Events(tmp_path / "events.jsonl"))


def test_a_file_is_not_written_through_a_link(tmp_path):
    target, path = tmp_path / "target", tmp_path / "file"
    target.write_text("kept")
    (tmp_path / f".file.{os.getpid()}").symlink_to(target)
    durably(path, lambda unfinished: Path(unfinished).write_text("new"))
    assert (target.read_text(), path.read_text()) == ("kept", "new")
    assert not path.is_symlink()


# ---------------------------------------------------------------------------------- secrets


def test_secrets_are_left_out():
    secrets = Secrets({"HF_TOKEN": "hf_0123456789", "HF_HOME": "/home/x", "PATH": "/bin"})
    said = secrets.left_out("hf_0123456789 at https://user:pass@hub.example/x in /home/x, a@b.c")
    assert said == "[hidden] at https://[hidden]@hub.example/x in /home/x, a@b.c"
    for harmless in ({"HF_TOKEN": ""}, {"HF_HOME": "/home/me@work/hf"}):
        assert Secrets(harmless).left_out("as it is in /home/me@work/hf") == (
            "as it is in /home/me@work/hf"
        )


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://user:hunter2's@hub:80", "for url 'http://user:hunter2's@hub:80/api'"),
        ("http://user:hunter%202@hub", "at http://user:hunter%202@hub, with hunter 2"),
        ("user:hunter2@proxy:3128", "through user:hunter2@proxy:3128"),
        ("http://hunter2@hub", "at http://hunter2@hub"),
        ("http://user:hunter2/@x@hub", "http://user:hunter2/@x@hub refused hunter2/@x"),
    ],
)
@pytest.mark.parametrize("name", ["HF_ENDPOINT", "https_proxy"])
def test_a_password_of_whatever_letters_is_left_out(name, address, said):
    told = Secrets({name: address}).left_out(said)
    assert "hunter" not in told
    assert "[hidden]@" in told
    assert told.partition("[hidden]")[0] == said.partition("user")[0].partition("hunter")[0]


CANARIES = {
    "HF_TOKEN": "hf_CANARY-token",
    "HF_ENDPOINT": "http://user:CANARY-endpoint@127.0.0.1:9",
    "HTTPS_PROXY": "http://user:CANARY-proxy@127.0.0.1:9",
    "https_proxy": "http://user:CANARY-proxy@127.0.0.1:9",
    "AWS_SECRET_ACCESS_KEY": "CANARY-aws",
    "WANDB_API_KEY": "CANARY-wandb",
    "GITHUB_TOKEN": "CANARY-github",
    "NVIDIA_API_KEY": "CANARY-nvidia",
}


def test_what_a_worker_prints_has_no_secret():
    said = "import os, sys, logging; from kdbench.worker.secrets import hide; hide();"
    said += "logging.warning(os.environ['HF_ENDPOINT']); print(os.environ['HF_TOKEN'], flush=True);"
    said += "raise ValueError(os.environ['HTTPS_PROXY'])"
    environment = {**os.environ, **CANARIES, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", said],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "CANARY" not in done.stdout + done.stderr
    assert done.stdout == "[hidden]\n"
    assert "ValueError: http://[hidden]@127.0.0.1:9" in done.stderr


def test_no_secret_is_in_what_a_run_writes(kdbench, tiny, tmp_path, monkeypatch):
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    hub = tmp_path / "hub.toml"
    source = 'source = "datasets"\npath = "nobody/nothing"'
    hub.write_text(TINY.replace('"tiny"', '"hub"').replace('source = "synthetic"', source))
    said = [
        kdbench("run", "--matrix", path, "--device", "cpu", "--only", "method=embed-kd")
        for path in (tiny, hub)
    ]
    assert [one.code for one in said] == [0, 1]
    said.append(kdbench("doctor", "results"))
    assert all("CANARY" not in one.out + one.err for one in said)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert b"CANARY" not in path.read_bytes(), path
        if path.suffix == ".parquet":
            assert "CANARY" not in str(pq.read_table(path, partitioning=None).to_pylist()), path
