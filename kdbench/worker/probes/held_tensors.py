"""What a method's step holds from one call to the next, found by looking into it.

A method may keep what it likes: a queue of embeddings, a copy of weights. That is memory of the
training, and nobody is told of it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any

from torch import Tensor

# These lead to all that there is.
_NOT_INTO = (ModuleType, type, CodeType, FrameType)


def held_tensors(step: Callable[..., Any], known: Iterable[object]) -> list[Tensor]:
    """Find the tensors that a function keeps: in its closure, its object, and what these hold.

    Args:
        step: the function; what is global to it is not looked at.
        known: what is not to be looked into. A tensor among it stands for its whole storage.
    """
    seen = {id(thing): thing for thing in known}
    storages = {_storage(thing) for thing in seen.values() if isinstance(thing, Tensor)}
    found: list[Tensor] = []
    left: list[Any] = [step]
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, _NOT_INTO):
            continue
        seen[id(thing)] = thing  # kept: an id is of one thing as long as that lives
        if not isinstance(thing, Tensor):
            left += _inside(thing)
        elif (storage := _storage(thing)) is not None and storage not in storages:
            found.append(thing)
    return found


def _inside(thing: object) -> list[Any]:
    if isinstance(thing, FunctionType):  # all but the globals of its module
        return [thing.__closure__, thing.__defaults__, thing.__kwdefaults__, thing.__dict__]
    return gc.get_referents(thing)


def _storage(tensor: Tensor) -> int | None:
    try:
        key: int = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):  # sparse and the like have none
        return None
    return key
