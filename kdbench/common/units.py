"""Values as text. Data stays in bytes, seconds and joules; units are scaled here, when shown."""

import math
import re
from collections.abc import Iterable
from decimal import Decimal
from typing import Literal

from kdbench.common.errors import short_repr

Unit = Literal["bytes", "seconds", "joules", "fraction"]

MISSING = "–"

# Decimal prefixes, as the paper's figures have them.
_LADDERS: dict[Unit, tuple[tuple[float, str], ...]] = {
    "bytes": ((1, "B"), (1e3, "kB"), (1e6, "MB"), (1e9, "GB"), (1e12, "TB")),
    "seconds": ((1e-6, "µs"), (1e-3, "ms"), (1, "s"), (60, "min"), (3600, "h")),
    "joules": ((1e-3, "mJ"), (1, "J"), (1e3, "kJ"), (1e6, "MJ")),
    "fraction": ((0.01, "%"),),
}

_RATES = ((1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s"))


def format_value(value: float | None, unit: Unit) -> str:
    """Write a value with three significant digits in the unit that suits it: `1.25 GB`.

    Fractions are percentages with one decimal; what is missing or not finite is a dash.
    """
    if value is None or not math.isfinite(value):
        return MISSING
    factor, name = _rung(abs(value), unit)
    return f"{_digits(value / factor, name)} {name}"


def format_interval(ends: tuple[float, float], value: float, unit: Unit) -> str:
    """Write an interval in the unit that suits the value within it: `1.21-1.28`, with a dash.

    Empty where its ends do not differ in the digits shown.
    """
    factor, name = _rung(abs(value), unit)
    low, high = (_digits(end / factor, name) for end in ends)
    return "" if low == high else f"{low}–{high}"


_SIZE = re.compile(r"(\d{1,15}(?:\.\d{1,9})?)\s*([A-Za-z]+)")
_SIZES = {
    "B": 1,
    **{f"{letter}B": 1000**n for n, letter in enumerate("kMGT", start=1)},
    **{f"{letter}iB": 1024**n for n, letter in enumerate("KMGT", start=1)},
}
# As people write them too: in any case, and the B left out.
_WRITTEN = {
    written: size
    for name, size in _SIZES.items()
    for written in (name.lower(), name.lower().removesuffix("b"))
    if written
}


def parse_size(text: str) -> int:
    """Read an amount of memory: `512 B`, `24GiB`, `1.5 mb`; fractions of a byte are dropped."""
    found = _SIZE.fullmatch(text.strip())
    size = _WRITTEN.get(found[2].lower()) if found else None
    if found is None or size is None:
        names = ", ".join(_SIZES)
        raise ValueError(f"expected a size such as '24 GiB' (in {names}), found {short_repr(text)}")
    return int(Decimal(found[1]) * size)


def axis_unit(values: Iterable[float], unit: Unit) -> tuple[float, str]:
    """Pick one unit for an axis by its largest value: what to divide by, and its name."""
    return _rung(max((abs(v) for v in values if math.isfinite(v)), default=0.0), unit)


def format_ratio(ratio: float | None) -> str:
    """Write value over reference so that its direction cannot be mistaken.

    `×1.3`: the reference times 1.3; `÷9.7`: the reference divided by 9.7. Empty for no ratio.
    """
    if ratio is None or not math.isfinite(ratio) or ratio <= 0:
        return ""
    sign, size = ("÷", 1 / ratio) if ratio < 1 else ("×", ratio)
    decimals = 2 if size < 2 else 1 if size < 9.95 else 0
    text = f"{size:.{decimals}f}"
    return f"×{text}" if float(text) == 1 else f"{sign}{text}"


def format_rate(operations: float) -> str:
    """Write floating-point operations per second: `302 GFLOP/s`."""
    factor, name = next((rung for rung in _RATES if operations >= rung[0]), _RATES[-1])
    return f"{_digits(operations / factor, name)} {name}"


def format_factor(ratio: float | None) -> str:
    """Write a ratio as a plain number of four digits near 1, three elsewhere: `1.046`, `0.103`."""
    if ratio is None or not math.isfinite(ratio):
        return MISSING
    if 0.0995 <= ratio < 9.9995:
        return f"{ratio:.3f}"
    return f"{ratio:,.0f}" if ratio >= 99.95 else f"{ratio:.3g}"


def format_count(count: float) -> str:
    """Write a count with its thousands set apart: `12,300`."""
    return f"{math.ceil(count):,}"


def _rung(size: float, unit: Unit) -> tuple[float, str]:
    """Pick the largest unit in which the value, once rounded to three digits, is at least 1."""
    ladder = _LADDERS[unit]
    # Rounded first: 999.7 kB is shown as 1.00 MB and 59.96 s as 1.00 min.
    size = float(f"{size:.2e}")
    if unit == "seconds" and size == 0:
        return 1, "s"
    for factor, name in reversed(ladder):
        if size >= factor:
            return factor, name
    return ladder[0]


def _digits(value: float, name: str) -> str:
    size = abs(value)
    if name == "%":
        return f"{value:.1f}"
    if name == "B" or size == 0 or size >= 99.95:
        return f"{value:.0f}"
    if size < 0.995:
        return f"{value:.3g}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}"
