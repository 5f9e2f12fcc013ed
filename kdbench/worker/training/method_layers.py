"""The layers that a method brings: trained with the student, and never left out in silence."""

import weakref
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kdbench.common.errors import InputError, quoted, short_repr

Layer = TypeVar("Layer", nn.Module, nn.Parameter)

# What these hold they run: nothing can be taken out of them.
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_MOST_SHAPES = 4
_HINT = "give the method's layers to parts.own(name, layer), before the first step"


class OwnLayers(nn.Module):
    """A method's own layers, by the names that it gives them; empty where it has none."""

    #: the method's step that has been built: the optimizer knows all that there is; None: not yet
    closed_by: str | None = None

    def add(
        self, name: str, layer: Layer, *, device: torch.device, others: Sequence[nn.Module]
    ) -> Layer:
        """Take a layer in; return it, on the device.

        A module may have the others (student and teacher) as attributes, and keeps them so, but
        they are no part of what is the method's.
        """
        if self.closed_by is not None:
            raise InputError(
                f"the layer {short_repr(name)} comes too late to be trained",
                where=self.closed_by,
                hint=_HINT,
            )
        if not isinstance(name, str) or not name.isidentifier() or hasattr(self, name):
            expected = "expected a name for a layer, such as 'projector', that is not taken"
            raise InputError(f"{expected}, found {short_repr(name)}")
        if isinstance(layer, nn.Module):
            _let_go(layer, others)
            _check(name, layer, others)
            layer = layer.to(device)
        elif not isinstance(layer, nn.Parameter):
            found = "a plain tensor" if isinstance(layer, Tensor) else type(layer).__name__
            raise InputError(f"expected a module or a parameter as {name!r}, found {found}")
        elif layer.device != device:
            layer = nn.Parameter(layer.detach().to(device), requires_grad=layer.requires_grad)
        setattr(self, name, layer)
        return layer

    def has(self, layer: nn.Module | nn.Parameter) -> bool:
        """Whether a layer is one of these, or a part of one."""
        return any(layer is own for own in (*self.modules(), *self.parameters()))


def contents(student: nn.Module) -> dict[str, object]:
    """Name all that a student is made of."""
    return {
        **dict(student.named_modules()),
        **dict(student.named_parameters()),
        **dict(student.named_buffers()),
    }


def take_attached(student: nn.Module, before: dict[str, object]) -> list[tuple[str, Any]]:
    """Take from a student the layers that a method has put on it; they stay plain attributes."""
    taken = []
    registries: tuple[dict[str, Any], ...] = (student._modules, student._parameters)
    for registry in registries:
        for name in [name for name, layer in registry.items() if layer is not None]:
            if name not in before:
                student.__dict__[name] = registry.pop(name)
                taken.append((name, student.__dict__[name]))
    after = contents(student)
    names = sorted(before.keys() | after.keys())
    changed = [name for name in names if before.get(name) is not after.get(name)]
    if changed:
        raise InputError(
            f"the method changed the student, which is to be the same for all: {quoted(changed)}",
            hint=_HINT,
        )
    return taken


class Strays:
    """Looks for what gets gradients and is trained by nobody.

    It walks through a loss's graph, which takes about a millisecond: in a training's first two
    steps, and when it is asked to. `where` names the method in an error; it is None for a method of
    kdbench's own, which has no layers and whose timed steps nothing is to slow.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, where: str | None) -> None:
        self._optimizer, self._where = optimizer, where
        self._looks = 2
        #: leaves of an earlier step that are no parameters by their type
        self._suspects: list[weakref.ref[Tensor]] = []

    def look_again(self) -> None:
        """Look in the next step, too."""
        self._looks = max(self._looks, 1)

    def look(self, loss: Tensor) -> None:
        """Look through a step's graph before backward, for what the optimizer does not have.

        A parameter is refused at once, any other tensor if it was there in an earlier step, too:
        one that is made anew, as for the gradient of an image, is nobody's to train.
        """
        if self._where is None or not self._looks:
            return
        self._looks -= 1
        trained = {id(p) for group in self._optimizer.param_groups for p in group["params"]}
        leaves = [leaf for leaf in _leaves(loss) if id(leaf) not in trained]
        earlier = [suspect() for suspect in self._suspects]
        found = [
            leaf
            for leaf in leaves
            if isinstance(leaf, nn.Parameter) or any(leaf is other for other in earlier)
        ]
        if found:
            shapes = ", ".join(str(list(leaf.shape)) for leaf in found[:_MOST_SHAPES])
            raise InputError(
                "the method's step has parameters that no optimizer trains "
                f"({len(found)}), of shape {shapes}",
                where=self._where,
                hint=f"{_HINT}; or use what is not to be trained under torch.no_grad()",
            )
        self._suspects += [weakref.ref(leaf) for leaf in leaves]


def _leaves(loss: Tensor) -> Iterator[Tensor]:
    """Find the tensors into which backward of a loss puts gradients."""
    if loss.grad_fn is None:
        return
    seen, left = {loss.grad_fn}, [loss.grad_fn]
    while left:
        node = left.pop()
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            yield variable
        for after, _ in node.next_functions:
            if after is not None and after not in seen:
                seen.add(after)
                left.append(after)


def _let_go(layer: nn.Module, others: Sequence[nn.Module]) -> None:
    """Turn the student and the teacher inside a layer into plain attributes of it."""
    for part in list(layer.modules()):
        if any(part is inside for other in others for inside in other.modules()):
            continue
        for name, child in list(part._modules.items()):
            if any(child is other for other in others) and not isinstance(part, _CONTAINERS):
                del part._modules[name]
                part.__dict__[name] = child


def _check(name: str, layer: nn.Module, others: Sequence[nn.Module]) -> None:
    theirs = {id(p) for other in others for p in other.parameters()}
    for parameter in layer.parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise InputError(
                f"the layer {name!r} has no size before it is used",
                hint="parts.student.width and parts.teacher_width tell it",
            )
        if id(parameter) in theirs:
            problem = f"the layer {name!r} has parameters of the student or the teacher in it"
            raise InputError(problem, hint="parts.own takes what is the method's alone")
    if not all(isinstance(value, Tensor) for value in layer.state_dict().values()):
        problem = f"the layer {name!r} has a state that is no tensor, which no checkpoint keeps"
        raise InputError(problem, hint="keep it in buffers")
