"""Memory that ran out: what those who refused it say, and what we say of it."""

import re
from dataclasses import dataclass
from typing import Literal

from kdbench.common.units import format_value

Source = Literal["cuda", "host", "kernel"]

#: What to do about it, in every such error.
REMEDY = (
    "a smaller training.batch_size or training.checkpointing = true needs less, and "
    "kdbench predict --fits says which cells fit"
)

# torch's allocator, the runtime, the driver, Triton; and the libraries' own status. NOT_INITIALIZED
# and NOT_SUPPORTED have other causes as well, and are none of it.
_CUDA = re.compile(
    r"\b(?:CUDA|cuda|HIP)[^\n]{0,80}out of memory|cudaErrorMemoryAllocation"
    r"|\bCU[A-Z]+_STATUS_ALLOC_FAILED|_DEVICE_ALLOCATION_FAILED"
)
# torch's CPU allocator, the C library, C++, numpy, Arrow, oneDNN, OpenBLAS, and Python itself as a
# DataLoader's process quotes it. A library's thread-local storage that is full is none of it.
_HOST = re.compile(
    r"can't allocate memory|not enough memory: you tried to allocate"
    r"|Cannot allocate memory(?! in static TLS)|std::bad_alloc|\bMemoryError\b|_ArrayMemoryError"
    r"|Unable to allocate [\d.]+ \w+ for an array|alloc of size \d+ failed"
    r"|could not create a memory object|Memory allocation still failed|out of memory"
    r"|_HOST_ALLOCATION_FAILED"
)
# The same words where memory is short and where a file system, a namespace or a count forbids it.
_AMBIGUOUS = re.compile(
    r"failed to map segment from shared object|can't start new thread"
    r"|pthread_create failed|Thread creation failed"
)
_UNIT: dict[str, int] = {
    "bytes": 1,
    "B": 1,
    **{f"{p}iB": 1024**n for n, p in enumerate("KMGTPE", start=1)},
}
_SIZE = r"(\d+\.?\d*) (" + "|".join(_UNIT) + r")\b"
_ASKED = re.compile(rf"[Tt]ried to allocate {_SIZE}|[Uu]nable to (?:allocate|mmap) {_SIZE}")
_ASKED_OF_ARROW = re.compile(r"alloc of size (\d+) failed")
# Up to torch 1.13 the second form of each.
_FREE = re.compile(rf"of which {_SIZE} is free|{_SIZE} free;")
_TOTAL = re.compile(rf"total capac\w+ of {_SIZE}|{_SIZE} total capacity")


@dataclass(frozen=True)
class OutOfMemory:
    """Memory that was asked for and not there; None for what nobody reported."""

    source: Source
    asked_bytes: int | None = None
    free_bytes: int | None = None
    limit_bytes: int | None = None
    #: whose limit, in words
    limit: str | None = None

    def columns(self) -> dict[str, str | int | None]:
        """Return what `cells` keeps of it."""
        return {
            "oom_source": self.source,
            "oom_asked_bytes": self.asked_bytes,
            "oom_free_bytes": self.free_bytes,
        }

    def message(self, error: str) -> str:
        """Say in one line what was asked for, what was free, under which limit, and what helps."""
        sizes = (self.asked_bytes, self.free_bytes, self.limit_bytes)
        asked, free, limit = ("" if s is None else format_value(s, "bytes") for s in sizes)
        words = f"{asked} asked for" if asked else "how much was asked for is not known"
        words += f", {free} free" if free else ""
        if limit:
            words += f" {'of' if free else 'under a limit of'} {limit}"
            words += f" ({self.limit})" if self.limit else ""
        where = "on the card" if self.source == "cuda" else "on the host"
        return f"out of memory {where}: {words}; {REMEDY} ({error})"


def parse_out_of_memory(text: str) -> OutOfMemory | None:
    """Say by an error's text whether memory ran out, and read the sizes in it.

    Torch writes CUDA's sizes with two decimals of their unit, so that "20.00 GiB" may be 5 MiB more
    or less; the CPU allocator's are exact.
    """
    if _CUDA.search(text):
        return OutOfMemory(
            "cuda",
            asked_bytes=_size(_ASKED, text),
            free_bytes=_size(_FREE, text),
            limit_bytes=_size(_TOTAL, text),
        )
    if not _HOST.search(text):
        return None
    arrow = _ASKED_OF_ARROW.search(text)
    return OutOfMemory("host", asked_bytes=int(arrow[1]) if arrow else _size(_ASKED, text))


def may_be_out_of_memory(text: str) -> bool:
    """Whether memory that ran out is one of two things that an error's text may mean."""
    return _AMBIGUOUS.search(text) is not None


def _size(pattern: re.Pattern[str], text: str) -> int | None:
    found = pattern.search(text)
    if found is None:
        return None
    number, unit = [str(group) for group in found.groups() if group is not None]
    return round(float(number) * _UNIT[unit]) if "." in number else int(number) * _UNIT[unit]
