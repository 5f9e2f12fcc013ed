"""A local checkpoint's weights, by the headers of their files: what is there, and of what shape.

A safetensors file begins with the length of its header (8 bytes, little-endian) and the header:
JSON of each tensor's type, shape and place. Of a gigabyte of weights, a few kilobytes are read.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from kdbench.common.errors import InputError, os_reason, quoted, short_repr
from kdbench.spec.pretrained.config import OWN_CLASSES, Config
from kdbench.spec.pretrained.files import CONFIG, Checkpoint, check_fetched, read_json

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_LAYERS = "encoder.layer."
_ADAPTER = "adapter_config.json"
_MOST_HEADER = 100_000_000  # as safetensors itself has it

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

_Length = Annotated[int, Field(ge=0, le=2**53)]


@dataclass(frozen=True)
class _Tensor:
    dtype: str
    shape: tuple[_Length, ...]
    data_offsets: tuple[_Length, _Length]


_HEADER = TypeAdapter(dict[str, _Tensor])


def check_weights(checkpoint: Checkpoint, config: Config, *, classifier: bool) -> bool | None:
    """Refuse a local folder without the weights that its configuration asks for.

    Returns whether a pooler is among them; None if their names are known to transformers alone.
    Raises InputError for an adapter's, pickled, partial, damaged, unfetched or missing weights.
    """
    shapes: dict[str, Shape] = {}
    for name in _files(checkpoint):
        shapes |= _read_header(checkpoint, name)
    plain = {name.removeprefix("vit."): (name, shape) for name, shape in shapes.items()}
    if not any(name.startswith(_LAYERS) for name in plain):
        _check_unwrapped(checkpoint, shapes)
        return None
    pooler = _weight_and_bias("pooler.dense", (config.pooler_width, config.hidden_size))
    has_pooler = not classifier and all(name in plain for name in pooler)
    wanted = _wanted(config) | (pooler if has_pooler else {})
    if classifier:
        head = _weight_and_bias("classifier", (config.classes, config.hidden_size))
        if plain.keys().isdisjoint(head):
            problem = "expected a classifier, found a checkpoint without a head"
            raise checkpoint.error(problem, hint=OWN_CLASSES)
        wanted |= head
    _check_whole(checkpoint, wanted, plain)
    return has_pooler


def _check_unwrapped(checkpoint: Checkpoint, shapes: Shapes) -> None:
    """Refuse the weights of a model that something is wrapped around: each name has its prefix."""
    wrapped = next((name for name in shapes if _LAYERS in name), None)
    if wrapped is not None:
        raise checkpoint.error(
            f"expected weights named {_LAYERS}0. and so on, found {short_repr(wrapped)}",
            hint="save the model itself, not what is wrapped around it: `.module` of "
            "DistributedDataParallel, `._orig_mod` of torch.compile",
        )


def _files(checkpoint: Checkpoint) -> list[str]:
    """List the files that the weights are in."""
    if checkpoint.has(_ADAPTER):
        raise checkpoint.error(
            "expected whole weights, found an adapter to others",
            hint="merge it into its base model, and save that with save_pretrained",
        )
    if (checkpoint.folder / _WHOLE).is_file():
        return [_WHOLE]
    if not checkpoint.has(_INDEX):
        raise checkpoint.error(
            f"expected {_WHOLE}, found none",
            hint="pickled weights are not read, for they can run code: load them where you trust "
            "them, and save_pretrained writes the other",
        )
    index = read_json(checkpoint, _INDEX)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict):
        raise checkpoint.error(f"expected a weight_map in {_INDEX}, found none")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name:
            problem = f"expected names of files beside it in {_INDEX}, found {short_repr(name)}"
            raise checkpoint.error(problem)
    return sorted(set(names.values()))


def _read_header(checkpoint: Checkpoint, name: str) -> dict[str, Shape]:
    path = checkpoint.folder / name
    if path.exists() and not path.is_file():  # a pipe may never end
        raise _unreadable(checkpoint, name, "no regular file")
    try:
        with path.open("rb") as file:
            size, first = path.stat().st_size, file.read(64)
            check_fetched(checkpoint, name, first)
            length = int.from_bytes(first[:8], "little")
            whole = 2 <= length <= min(size - 8, _MOST_HEADER)
            file.seek(8)
            header = json.loads(file.read(length)) if whole else None
        if isinstance(header, dict):
            header.pop("__metadata__", None)
        tensors = _HEADER.validate_python(header)
    except OSError as error:
        reason = f"{type(error).__name__}, {os_reason(error)}"
        raise _unreadable(checkpoint, name, reason) from None
    except (ValueError, RecursionError):  # pydantic's error is a ValueError, too
        raise _unreadable(checkpoint, name, f"no safetensors file, of {size:,} bytes") from None
    needed = 8 + length + max((held.data_offsets[1] for held in tensors.values()), default=0)
    if needed != size:
        raise _unreadable(checkpoint, name, f"expected {needed:,} bytes, found {size:,}")
    return {name: held.shape for name, held in tensors.items()}


def _unreadable(checkpoint: Checkpoint, name: str, reason: str) -> InputError:
    problem = f"cannot read the weights: {name}: {reason}"
    return checkpoint.error(problem, hint=checkpoint.whole_again)


def _wanted(config: Config) -> dict[str, Shape]:
    """Name the weights of a ViT, as its checkpoints do, with their shapes."""
    width, inner = config.hidden_size, config.intermediate_size
    patches = (config.image_size // config.patch_size) ** 2
    wanted: dict[str, Shape] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.position_embeddings": (1, patches + 1, width),
        "embeddings.patch_embeddings.projection.weight": (
            *(width, config.num_channels),
            *(config.patch_size, config.patch_size),
        ),
        "embeddings.patch_embeddings.projection.bias": (width,),
        **_weight_and_bias("layernorm", (width,)),
    }
    parts: dict[str, Shape] = {
        "attention.output.dense": (width, width),
        "intermediate.dense": (inner, width),
        "output.dense": (width, inner),
        "layernorm_before": (width,),
        "layernorm_after": (width,),
    }
    for number in range(config.num_hidden_layers):
        layer = f"encoder.layer.{number}"
        for part in ("query", "key", "value"):
            projection = _weight_and_bias(f"{layer}.attention.attention.{part}", (width, width))
            if not config.qkv_bias:
                projection.popitem()
            wanted |= projection
        for part, shape in parts.items():
            wanted |= _weight_and_bias(f"{layer}.{part}", shape)
    return wanted


def _weight_and_bias(name: str, shape: Shape) -> dict[str, Shape]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _check_whole(
    checkpoint: Checkpoint, wanted: Shapes, held: Mapping[str, tuple[str, Shape]]
) -> None:
    for name, shape in sorted(wanted.items()):
        own, found = held.get(name, (name, shape))
        if found != shape:
            raise checkpoint.error(
                f"{CONFIG} means {own!r} to be {shape}, its weights are {found}",
                hint=checkpoint.whole_again,
            )
    missing = sorted(name for name in wanted if name not in held)
    if missing:
        inside = any(own.startswith("vit.") for own, _ in held.values())
        shown = [f"vit.{n}" if inside and not n.startswith("classifier.") else n for n in missing]
        raise checkpoint.error(
            f"the checkpoint is partial: it lacks {len(missing)} of {len(wanted)} weights, such "
            f"as {quoted(shown[:1])}",
            hint=checkpoint.whole_again,
        )
