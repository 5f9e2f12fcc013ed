"""What one training step needs, as a test sees it: bytes at its peak, and what they are for."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from kdbench.common.errors import InputError
from kdbench.common.units import format_value, parse_size
from kdbench.spec.gated_metrics import Tolerance

Source = Literal["ledger", "cuda-allocator"]

# Of modules named in a failure; the rest is summed up.
_MOST_MODULES = 10


@dataclass(frozen=True, kw_only=True)
class StepMemory:
    """One step's peak and work; sizes in bytes.

    Attributes:
        peak_bytes: most bytes live at once.
        source: who counted the peak. `ledger`: the storages that the step uses or makes, to the
            byte, each from the operation that returned it until its last reference goes.
            `cuda-allocator`: all that this process has on the card, by torch's own record.
        device: where the step ran, such as `cpu` or `cuda:0`.
        held: the ledger's peak by category and dotted name of the module (None: outside any).
        flops: floating-point operations of matrix products, convolutions and attention.
        operations: operations dispatched that compute or copy.
        bytes_moved: bytes of all tensors that those were given and returned.
        reserved_bytes: most bytes that CUDA's caching allocator held; None off CUDA.
        torch_version: the torch that ran it; another one may need other bytes.
        device_name: the card's name; None off CUDA.
    """

    peak_bytes: int
    source: Source
    device: str
    held: Mapping[tuple[str, str | None], int]
    flops: int
    operations: int
    bytes_moved: int
    reserved_bytes: int | None
    torch_version: str
    device_name: str | None = None

    @property
    def categories(self) -> dict[str, int]:
        """The ledger's peak by category, largest first."""
        return self._totals(lambda category, _: category)

    @property
    def modules(self) -> dict[str | None, int]:
        """The ledger's peak by dotted name of the module (None: outside any), largest first."""
        return self._totals(lambda _, module: module)

    @property
    def unattributed_bytes(self) -> int:
        """What the peak has beyond the ledger's; 0 where the ledger is its source.

        On CUDA: rounding, libraries' workspaces, and what the step does not use, such as what an
        earlier test left behind.
        """
        return self.peak_bytes - sum(self.held.values())

    def assert_at_most(self, limit: float | str, *, tolerance: float | str = 0) -> None:
        """Fail if the peak is above a limit, and say what holds the bytes.

        Args:
            limit: bytes, or a size such as "1.2 GB" or "500 MiB".
            tolerance: how far above it may be: a fraction of it (0.01), or a size ("1 MiB").

        Raises:
            AssertionError: the peak is above.
            InputError: a limit or a tolerance that none can be.
        """
        __tracebackhide__ = True  # pytest shows the test's line, not this one
        most, allowed = _limit(limit), parse_tolerance(tolerance)
        over = self.peak_bytes - most
        if over > allowed.allowed(most):
            raise AssertionError("\n".join([self._excess(most, tolerance), *self.breakdown()]))

    def breakdown(self) -> list[str]:
        """Say in lines what holds the peak: each category, and the modules with most."""
        parts = sorted(self.held.items(), key=lambda part: -part[1])
        named = [(f"{module} ({category})", size) for (category, module), size in parts if module]
        modules, rest = named[:_MOST_MODULES], named[_MOST_MODULES:]
        if rest:
            modules.append((f"{len(rest)} more", sum(size for _, size in rest)))
        categories = list(self.categories.items())
        if self.unattributed_bytes:
            categories.append(("unattributed", self.unattributed_bytes))
        lines = ["by category:", *_rows(categories)]
        return lines + (["by module:", *_rows(modules)] if modules else [])

    def figures(self) -> dict[str, Any]:
        """Return what is kept beside a benchmark or a report: flat, of plain values.

        What does not apply, such as reserved bytes off CUDA, is left out.
        """
        figures = {
            "peak_bytes": self.peak_bytes,
            "reserved_bytes": self.reserved_bytes,
            "flops": self.flops,
            "operations": self.operations,
            "bytes_moved": self.bytes_moved,
            **{f"{category}_bytes": size for category, size in self.categories.items()},
            "source": self.source,
            "device": self.device,
            "torch_version": self.torch_version,
        }
        return {name: value for name, value in figures.items() if value is not None}

    def _totals(self, key: Callable[[str, str | None], Any]) -> dict[Any, int]:
        totals: dict[Any, int] = {}
        for part, size in self.held.items():
            totals[key(*part)] = totals.get(key(*part), 0) + size
        return dict(sorted(totals.items(), key=lambda item: (-item[1], str(item[0]))))

    def _excess(self, most: float, tolerance: float | str) -> str:
        over = self.peak_bytes - most
        within = f" and the tolerance of {tolerance}" if tolerance else ""
        return (
            f"the step's peak is {_size(self.peak_bytes)}, {_size(over)} or "
            f"{over / most:.2%} above the limit of {_size(most)}{within}; "
            f"counted by the {self.source} on {self.device}"
        )


def parse_tolerance(tolerance: object) -> Tolerance:
    """Read a tolerance as a test gives it.

    Raises:
        InputError: it is none.
    """
    if isinstance(tolerance, str):
        return Tolerance(size=_parsed(tolerance, "tolerance"))
    if not _is_number(tolerance) or not 0 <= tolerance <= 1:
        expected = 'a fraction up to 1 (0.05: 5 %) or a size in quotes ("1 MiB")'
        raise _wrong(expected, tolerance, "tolerance")
    return Tolerance(fraction=float(tolerance))


def _limit(limit: object) -> float:
    size = _parsed(limit, "limit") if isinstance(limit, str) else limit
    if not _is_number(size) or not 0 < size < math.inf:
        raise _wrong("a limit in bytes above 0, or a size in quotes", limit, "limit")
    return size


def _parsed(text: str, key: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise InputError(str(error), where="kd_memory", key=key) from None


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _wrong(expected: str, found: object, key: str) -> InputError:
    return InputError(f"expected {expected}, found {found!r}", where="kd_memory", key=key)


def _size(size: float) -> str:
    return f"{size:,.0f} B ({format_value(size, 'bytes')})"


def _rows(parts: list[tuple[str, int]]) -> list[str]:
    sizes = {name: f"{size:,} B" for name, size in parts}
    name_width, width = max(map(len, sizes)), max(map(len, sizes.values()))
    return [f"  {name:<{name_width}}  {size:>{width}}" for name, size in sizes.items()]
