"""Utilisation, worked out on reading: from the best rate that any run of an environment reached.

Others at work, a cold clock, or a bad moment only ever make a rate too low. So the best one that
is known of an environment and a precision is nearest to the truth, whichever run measured it; and
a step that beats it proves it too low.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdbench.analysis.estimates import OFF, UNSURE, is_number

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Yardstick:
    """What a large matrix product reaches at best, in operations per second."""

    rate: float  #: the highest that was measured
    sure: bool  #: some run measured it steady and undisturbed, so that it is no lower than that
    beaten: bool  #: a step does more operations per second

    @property
    def doubt(self) -> str | None:
        """Why nothing is to be measured by it; None: it may be."""
        if self.beaten:
            return OFF
        return None if self.sure else UNSURE


def utilisations(rows: Sequence[Row]) -> list[Row]:
    """Work utilisation out anew, by yardsticks that all these rows of `cells` share.

    Returns for each row `utilisation` (missing where a step beats the yardstick), `yardstick` (its
    rate) and `utilisation_doubt` (what is wrong with it; None: nothing).
    """
    known = _yardsticks(rows)
    return [_told(row, known.get(_key(row))) for row in rows]


def _yardsticks(rows: Sequence[Row]) -> dict[tuple[Any, ...], Yardstick]:
    rates: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if is_number(row["matmul_flops_per_second"]) and row["matmul_flops_per_second"] > 0:
            rates.setdefault(_key(row), []).append(row)
    done: dict[tuple[Any, ...], float] = {}
    for row in rows:
        done[_key(row)] = max(done.get(_key(row), 0.0), _flops_per_second(row) or 0.0)
    return {
        key: Yardstick(
            rate=(best := max(row["matmul_flops_per_second"] for row in own)),
            sure=any(map(_is_sure, own)),
            beaten=done[key] > best,
        )
        for key, own in rates.items()
    }


def _key(row: Row) -> tuple[Any, ...]:
    return row["environment_id"], row["precision"]


def _flops_per_second(row: Row) -> float | None:
    flops, seconds = row["flops_step"], row["step_seconds_median"]
    return flops / seconds if is_number(flops) and is_number(seconds) and seconds > 0 else None


def _told(row: Row, yardstick: Yardstick | None) -> Row:
    reached, value = _flops_per_second(row), row["utilisation"]
    if yardstick is not None and reached is not None:
        value = reached / yardstick.rate
    elif is_number(value):  # what it was worked out from is not there any more
        yardstick = Yardstick(math.nan, sure=_is_sure(row), beaten=value > 1)
    else:
        return {"utilisation": None, "yardstick": None, "utilisation_doubt": None}
    return {
        "utilisation": None if yardstick.beaten else value,
        "yardstick": yardstick.rate,
        "utilisation_doubt": yardstick.doubt,
    }


def _is_sure(row: Row) -> bool:
    return bool(row["rates_steady"]) and not row["rates_contended"]
