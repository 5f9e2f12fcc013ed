"""Tiny ViT checkpoints of the tiny matrix's teacher, written by transformers itself."""

import shutil

import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from tests.support.models import tiny_run

SHAPE = {
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 96,
    "patch_size": 8,
    "image_size": 16,
}
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(5))


def write_embedder(folder, *, pooler=True, seed=0, shards=None, **changes):
    """Write a `ViTModel`; returns it, in evaluation mode."""
    model = ViTModel(ViTConfig(**SHAPE | changes), add_pooling_layer=pooler)
    return _written(model, folder, seed, **({"max_shard_size": shards} if shards else {}))


def write_classifier(folder, names=None, *, classes=5, seed=0, **changes):
    """Write a `ViTForImageClassification`; returns it, in evaluation mode."""
    labels = {"num_labels": classes} if names is None else {"id2label": dict(enumerate(names))}
    return _written(ViTForImageClassification(ViTConfig(**SHAPE | labels | changes)), folder, seed)


def _written(model, folder, seed, **options):
    # transformers' own initialisation leaves biases at zero and scores alike
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3, generator=generator)
    model.save_pretrained(folder, **options)
    return model.eval()


def rewrite_weights(folder, change):
    """Apply `change` to the dict of a checkpoint's weights."""
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def put_on_hub(cache, name, folder, *, commit, refs=("main",)):
    """Lay a folder out as the hub's library keeps a repository that it has downloaded."""
    root = cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (root / "blobs").mkdir(exist_ok=True)
    for path in folder.iterdir():
        blob = root / "blobs" / f"{commit}-{path.name}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(blob)
    for name in ("processor_config.json", "preprocessor_config.json"):
        if not (snapshot / name).exists():  # the hub was asked, and has none
            (root / ".no_exist" / commit).mkdir(parents=True, exist_ok=True)
            (root / ".no_exist" / commit / name).touch()
    for ref in refs:
        (root / "refs").mkdir(exist_ok=True)
        (root / "refs" / ref).write_text(commit)
    return snapshot


def pretrained(tmp_path, checkpoint, *assignments, method="embed-kd"):
    """A cell whose teacher is read from a checkpoint."""
    return tiny_run(
        tmp_path,
        method,
        f'axes.method=["{method}"]',
        'teachers.dwarf.weights="pretrained"',
        f'teachers.dwarf.checkpoint="{checkpoint}"',
        *assignments,
    ).cell
