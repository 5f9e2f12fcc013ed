"""Why figures of two snapshots cannot be compared, although each has them."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from kdbench.common.runtime_settings import memory_settings
from kdbench.gate.snapshot import MACHINE, About
from kdbench.spec.gated_metrics import Kind
from kdbench.store.schema import COMPARABLE_SINCE


@dataclass(frozen=True)
class Comparability:
    """What stands between a baseline and what is now."""

    whole: str | None = None  #: why nothing can be compared; None: something can
    #: why figures of a kind cannot be, for each kind that cannot
    reasons: Mapping[Kind, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  #: differences that do not decide


def check_comparability(before: About, now: About) -> Comparability:
    """Find what keeps figures of two snapshots from being compared."""
    whole = _whole(before, now)
    if whole is not None:
        return Comparability(whole)
    notes = []
    if before.matrix != now.matrix:
        notes.append(f"the baseline is of the matrix {before.matrix!r}, this of {now.matrix!r}")
    build = _differences({"torch_version": (before.torch_version, now.torch_version)})
    if now.source == "predicted":
        if _release(before.torch_version) != _release(now.torch_version):
            return Comparability(None, {"exact": _other_exact(build)}, tuple(notes))
        if build:  # no card's kernels run in a prediction, so that another build traces the same
            notes.append(f"another build of torch: {build}")
        return Comparability(None, {}, tuple(notes))
    reasons: dict[Kind, str] = {}
    decisive = _differences(_exact_on(before, now))
    if decisive:
        reasons["exact"] = _other_exact(decisive)
    machine = _differences({name: (getattr(before, name), getattr(now, name)) for name in MACHINE})
    if machine:
        reason = f"times of unlike machines: {machine}; measure both on one"
        reasons |= {"time": reason, "advisory": reason}
    return Comparability(None, reasons, tuple(notes))


def _whole(before: About, now: About) -> str | None:
    """Say why nothing at all can be compared."""
    if before.source != now.source:
        hint = "without a results folder, --matrix predicts"
        if before.source == "measured":
            hint = "name the results folder"
        return f"the baseline is {before.source}, this {now.source}; {hint}"
    if not COMPARABLE_SINCE <= before.schema_version <= now.schema_version:
        return (
            f"the baseline is of schema version {before.schema_version}, this kdbench's is "
            f"{now.schema_version}; --update writes it anew"
        )
    if before.profile != now.profile:
        return f"the baseline is for the profile {before.profile!r}, this for {now.profile!r}"
    if before.profile_digest != now.profile_digest:
        return f"the profile {now.profile!r} says other things than it did; --update writes anew"
    return None


def _exact_on(before: About, now: About) -> dict[str, tuple[str | None, str | None]]:
    """List what a measured step's bytes depend on beside the cell: the kernels that run."""
    kinds = [(side.device or "").partition(":")[0] or None for side in (before, now)]
    return {
        "torch_version": (before.torch_version, now.torch_version),
        "device": (kinds[0], kinds[1]),
        "gpu_name": (before.gpu_name, now.gpu_name),
        "runtime_settings": (
            memory_settings(before.runtime_settings),
            memory_settings(now.runtime_settings),
        ),
    }


def _other_exact(differences: str) -> str:
    return f"exact figures: {differences}; use the same, or make a new baseline (--update)"


def _differences(sides: Mapping[str, tuple[object, object]]) -> str:
    return ", ".join(
        f"{name} was {_known(before)} and is {_known(now)}"
        for name, (before, now) in sides.items()
        if before != now
    )


def _release(version: str | None) -> str | None:
    """Leave a build's own tag out of a version: `2.13.0+cpu` is 2.13.0."""
    return version if version is None else version.partition("+")[0]


def _known(value: object) -> str:
    return "unknown" if value is None else str(value)
