"""A training's state as named tensors on the host, and back; nothing is changed before all fits."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from kdbench.worker.checkpoints.files import LOSSES, Header, Progress, UnusableError
from kdbench.worker.training.session import Session

# What AdamW keeps of each parameter, once it has had a gradient.
_ADAMW = ("exp_avg", "exp_avg_sq", "step")
_OPTIMIZER = "optimizer."
_CPU_RANDOM, _CUDA_RANDOM = "random.cpu", "random.cuda"

Scaler = dict[str, int | float]


def collect(session: Session, progress: Progress) -> dict[str, Tensor]:
    """Gather by name, on the host, all tensors that a training needs to go on.

    Weights are `student.<name>` and `method.<name>`, the optimizer's state is
    `optimizer.<parameter>.<exp_avg|exp_avg_sq|step>`; there are torch's random generators, and the
    running epoch's losses. On a CPU these are the training's own tensors, not copies.
    """
    tensors = dict(_weights(session))
    for name, parameter in _parameters(session):
        for key, value in session.optimizer.state.get(parameter, {}).items():
            tensors[f"{_OPTIMIZER}{name}.{key}"] = value.detach()
    tensors |= _random_states(session)
    tensors[LOSSES] = torch.tensor(progress.losses, dtype=torch.float64)
    return {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}


def restore(session: Session, header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Put a session where it was: it then computes what it would have computed, to the bit.

    A session that the tensors do not fit is left as it was (UnusableError).
    """
    _check(session, header, tensors)
    _check_scaler(header.scaler, scaler_state(session))
    try:
        torch.Generator().set_state(tensors[_CPU_RANDOM])
    except RuntimeError as error:
        raise UnusableError("its random generator's state is none") from error
    for prefix, module in session.trained.items():
        own = {name: tensors.get(f"{prefix}.{name}") for name in module.state_dict()}
        # not strictly: of one tensor with several names the others are not there
        module.load_state_dict({n: t for n, t in own.items() if t is not None}, strict=False)
    _restore_optimizer(session, tensors)
    if session.scaler is not None and header.scaler is not None:
        session.scaler.load_state_dict(header.scaler)
    torch.set_rng_state(tensors[_CPU_RANDOM])
    if session.device.type == "cuda":
        torch.cuda.set_rng_state(tensors[_CUDA_RANDOM], session.device)


def scaler_state(session: Session) -> Scaler | None:
    """Return the state of the session's gradient scaler; None where it has none."""
    return None if session.scaler is None else dict(session.scaler.state_dict())


def _weights(session: Session) -> Iterator[tuple[str, Tensor]]:
    """Name the weights and buffers of all that is trained, each tensor once."""
    known = set()
    for prefix, module in session.trained.items():
        for name, tensor in module.state_dict(keep_vars=True).items():
            if id(tensor) not in known:
                known.add(id(tensor))
                yield f"{prefix}.{name}", tensor.detach()


def _parameters(session: Session) -> Iterator[tuple[str, nn.Parameter]]:
    """Name the optimizer's parameters in its order; the student's are the ones without a prefix."""
    yield from session.student.named_parameters()
    yield from session.layers.named_parameters(prefix="method")


def _restore_optimizer(session: Session, tensors: Mapping[str, Tensor]) -> None:
    optimizer, state = session.optimizer, {}
    for number, (name, _) in enumerate(_parameters(session)):
        if f"{_OPTIMIZER}{name}.step" in tensors:
            # copies: what was read may share its memory with the file
            state[number] = {key: tensors[f"{_OPTIMIZER}{name}.{key}"].clone() for key in _ADAMW}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _random_states(session: Session) -> dict[str, Tensor]:
    states = {_CPU_RANDOM: torch.get_rng_state()}
    if session.device.type == "cuda":
        states[_CUDA_RANDOM] = torch.cuda.get_rng_state(session.device)
    return states


def _check(session: Session, header: Header, tensors: Mapping[str, Tensor]) -> None:
    wanted = dict(_wanted(session, header, tensors))
    for name in sorted(wanted.keys() | tensors.keys()):
        if name not in wanted:
            raise UnusableError(f"it has a tensor too many: {name[:80]!r}")
        if name not in tensors:
            raise UnusableError(f"it lacks the tensor {name!r}")
        found, other = tensors[name], wanted[name]
        if found.dtype != other.dtype or found.shape != other.shape:
            raise UnusableError(
                f"expected {name} as {other.dtype} of {list(other.shape)}, "
                f"found {found.dtype} of {list(found.shape)}"
            )


def _check_scaler(found: Scaler | None, own: Scaler | None) -> None:
    if (found is None) != (own is None):
        raise UnusableError("it is of a training in another precision")
    if found is None or own is None:
        return
    # Its scale and its count of steps without an overflow change; the rest are settings.
    changing = {name: found.get(name) for name in ("scale", "_growth_tracker")}
    possible = (
        found.keys() == own.keys()
        and found == own | changing
        and 0 <= found["scale"] <= 2.0**127
        and 0 <= found["_growth_tracker"] <= found["growth_interval"]
    )
    if not possible:
        raise UnusableError("what it says of its gradient scaler cannot be")


def _wanted(
    session: Session, header: Header, tensors: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    """Name every tensor of a whole checkpoint, each with one of its type and shape."""
    yield from _weights(session)
    for name, parameter in _parameters(session):
        # all of a parameter's or nothing: it may not have had a gradient yet
        if any(f"{_OPTIMIZER}{name}.{key}" in tensors for key in _ADAMW):
            for key in _ADAMW:
                like = torch.tensor(0.0) if key == "step" else parameter
                yield f"{_OPTIMIZER}{name}.{key}", like
    yield from _random_states(session).items()
    yield LOSSES, torch.empty(header.step, dtype=torch.float64)
