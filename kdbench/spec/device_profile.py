"""Device profiles: what a prediction takes for granted of the device it is for.

They are data, in `kdbench/spec/profiles/*.toml` or in a file of the user's own. Each entry says
what it rests on, since a prediction is no better than these.
"""

import tomllib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from kdbench.common.document import read_document
from kdbench.common.errors import InputError, did_you_mean, quoted, short_repr
from kdbench.common.units import parse_size
from kdbench.common.validation import validate
from kdbench.spec.cell import digest
from kdbench.spec.profiles import known_profiles, profile_text
from kdbench.spec.settings import Frozen, Name

#: the profile whose predictions are exact: nothing of it is assumed
DEFAULT = "cpu"

_GRADES = ("measured", "source", "assumed")
Bytes = Annotated[int, Field(ge=0, le=2**50)]
Kernel = Literal["math", "flash", "efficient"]


class Profile(Frozen):
    """One device, as far as it decides what a step allocates.

    Raises:
        ValueError: an entry has no basis, or a basis no entry.
    """

    name: Name
    #: the device as people know it
    title: Annotated[str, Field(max_length=200)]
    device: Literal["cpu", "cuda"]
    #: memory that a process can have, as the driver tells it to torch; None: not known
    capacity_bytes: Bytes | None = None
    #: of that, what a process holds beside torch's allocator: CUDA's context and loaded kernels
    context_bytes: Bytes = 0
    #: what cuBLAS takes from the allocator, once for each thread that multiplies, and keeps
    cublas_workspace_bytes: Bytes = 0
    #: what `optimizer_kernels = "auto"` comes to
    optimizer_kernels: Literal["single", "foreach", "fused"] = "single"
    #: what `attention = "sdpa"` comes to in float32, and under autocast
    attention_float32: Kernel = "math"
    attention_half: Kernel = "math"
    #: by entry: "measured: ...", "source: ..." or "assumed: ..."
    basis: dict[str, str] = Field(default_factory=dict)
    #: what of this profile's predictions was held against a real device; "": nothing
    verified: Annotated[str, Field(max_length=10_000)] = ""

    @model_validator(mode="after")
    def _founded(self) -> Self:
        entries = self.model_fields_set - {"name", "title", "device", "basis", "verified"}
        for name in sorted(entries - self.basis.keys()):
            raise ValueError(f"basis: expected what {short_repr(name)} rests on, found nothing")
        for name, words in sorted(self.basis.items()):
            if name not in entries:
                raise ValueError(f"basis: there is no entry {short_repr(name)}")
            if words.partition(":")[0] not in _GRADES:
                raise ValueError(
                    f"basis.{name}: expected words after one of {quoted(_GRADES)} and a colon, "
                    f"found {short_repr(words)}"
                )
        return self

    @property
    def digest(self) -> str:
        """Hash of all that it says (16 hex digits)."""
        return digest(self.model_dump(exclude={"basis", "title", "verified"}))


def load_profile(wanted: str) -> Profile:
    """Load a profile of kdbench's own by name, or one of the user's by its path (`*.toml`)."""
    if wanted.endswith(".toml"):
        path = Path(wanted)
        document = {"name": path.stem, **read_document(path, kind="device profile")}
        return validate(Profile, document, where=path)
    known = known_profiles()
    if wanted not in known:
        near = did_you_mean(wanted, known)
        hint = near or f"there are {quoted(known)}, or a path to a .toml file"
        raise InputError(f"no device profile {wanted!r}", where="--profile", hint=hint)
    document = tomllib.loads(profile_text(wanted))
    return validate(Profile, {"name": wanted, **document}, where=f"profile {wanted}")


def missing_profile_error(text: str) -> InputError:
    """Make the error of an amount of memory without the device that has it.

    A CPU, which predictions are for otherwise, is hardly what is meant, and of two cards with as
    much memory each keeps another part of it to itself.
    """
    cards = [load_profile(name) for name in known_profiles()]
    sizes = {c.name: c.capacity_bytes for c in cards if c.capacity_bytes is not None}
    try:
        wanted = parse_size(text)
    except ValueError:
        wanted = 0
    near = sorted(sizes, key=lambda name: (abs(sizes[name] - wanted), name))
    listed = ", ".join(f"{name} ({sizes[name] / 1e9:.0f} GB)" for name in near)
    return InputError(
        f"whose {text}? expected a device too, found no --profile",
        where="--fits",
        hint=f"add --profile with one of {listed}, or cpu for the host's memory",
    )


def parse_capacity(text: str, profile: Profile) -> int:
    """Read an amount of memory, such as `24GiB`; `card` is all that the profile's device has."""
    if text == "card":
        if profile.capacity_bytes is None:
            raise InputError(
                f"the profile {profile.name!r} does not say how much memory it has",
                where="--fits",
                hint="name an amount, such as 24GiB",
            )
        return profile.capacity_bytes
    try:
        return parse_size(text)
    except ValueError:
        raise InputError(
            f"expected an amount of memory, found {text!r}",
            where="--fits",
            hint="such as 24GiB, 80GB, or card for all that the profile's device has",
        ) from None
