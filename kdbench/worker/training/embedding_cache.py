"""Embeddings that were computed once, kept under a key of all that they were computed from.

A file is safetensors: the tensor, and in its header what it was made from, what that cost, and a
digest of its bytes. It is believed only if all of these fit.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from kdbench.spec.cell import digest
from kdbench.worker.checkpoints.durable import durably, make_folder
from kdbench.worker.out_of_memory import is_shortage

_TENSOR, _HEADER = "embeddings", "kdbench"

#: what embeddings are made from: JSON values
Recipe = Mapping[str, Any]


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Cost:
    """What a whole computation cost where it was done."""

    seconds: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False)]
    batches: Annotated[int, Field(ge=0, le=2**53)]
    #: peak allocated; None: not known
    peak_bytes: Annotated[int, Field(ge=0, le=2**53)] | None
    #: extrapolated, where some of its batches could not be timed
    kind: Literal["measured", "extrapolated"] = "measured"


class DamagedError(Exception):
    """A file of the cache is not what its name says; the message says why."""


def cached_path(cache: Path, recipe: Recipe) -> Path:
    """Where embeddings are kept: the name is a digest of what they are made from."""
    return cache / "embeddings" / f"{digest(recipe)}.safetensors"


def read_embeddings(
    path: Path, recipe: Recipe, shape: tuple[int, ...]
) -> tuple[Tensor, Cost] | None:
    """Read float32 embeddings of this recipe and shape, and their cost; None: there are none.

    Raises:
        DamagedError: the file holds something else.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[_HEADER])
            part = file.get_slice(_TENSOR)
            if (tuple(part.get_shape()), part.get_dtype()) != (shape, "F32"):
                raise DamagedError(f"expected float32 {list(shape)}, found {part.get_shape()}")
            tensor = file.get_tensor(_TENSOR)
        cost = Cost(**header["cost"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        if is_shortage(error):
            raise
        problem = " ".join(str(error).split("\n    For further")[0].split())
        raise DamagedError(f"cannot be read: {type(error).__name__}: {problem}") from error
    if header.get("recipe") != json.loads(json.dumps(recipe)):
        raise DamagedError("it was made from something else")
    if header.get("digest") != tensor_digest([tensor]):
        raise DamagedError("its numbers are not those that were written")
    return tensor, cost


def write_embeddings(path: Path, recipe: Recipe, embeddings: Tensor, cost: Cost) -> None:
    """Write by rename: two runs that compute the same at once both end with a whole file."""
    make_folder(path.parent)
    tensor = embeddings.detach().cpu().contiguous()
    header = {"recipe": recipe, "cost": asdict(cost), "digest": tensor_digest([tensor])}
    metadata = {_HEADER: json.dumps(header)}
    durably(path, lambda unfinished: save_file({_TENSOR: tensor}, unfinished, metadata))


def module_digest(module: nn.Module) -> str:
    """Digest of a module's parameters and buffers with their names: 16 hex digits."""
    state = module.state_dict()
    return digest([sorted(state), tensor_digest(state[name] for name in sorted(state))])


def tensor_digest(tensors: Iterable[Tensor]) -> str:
    """Digest of tensors' types, shapes and bytes: 16 hex digits."""
    total = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        on_host = tensor.detach().cpu().contiguous()
        total.update(f"{on_host.dtype} {list(on_host.shape)}\n".encode())
        total.update(on_host.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
