"""`--only COLUMN=V1,V2`: rows with certain values in a column of `cells`; no expressions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from kdbench.common.errors import InputError, did_you_mean, near_or_all, quoted, short_repr


@dataclass(frozen=True)
class RowFilter:
    """One filter; values compare as they are written: `true`, `null`, `32`."""

    column: str
    wanted: tuple[str, ...]
    #: what the user wrote it behind, for messages
    option: str = "--only"

    @classmethod
    def parse(cls, condition: str, known: Sequence[str], option: str = "--only") -> Self:
        """Read `COLUMN=V1,V2`; the column must be among `known`."""
        column, equals, values = condition.partition("=")
        column = column.strip()
        if not equals:
            raise InputError(f"expected COLUMN=V1,V2, found {short_repr(condition)}", where=option)
        if column not in known:
            hint = near_or_all(column, known, "columns")
            raise InputError(f"unknown column {short_repr(column)}", where=option, hint=hint)
        wanted = tuple(value.strip() for value in values.split(","))
        for value in wanted:
            other, another, _ = value.partition("=")
            if another and other in known:
                raise InputError(
                    f"expected values of {column!r}, found a second filter, {short_repr(value)}",
                    where=option,
                    hint=f"give each its own: {option} {value}",
                )
        return cls(column, wanted, option)

    def keep(self, values: Sequence[object]) -> list[bool]:
        """Say which of a column's values are wanted; raises InputError if none is."""
        texts = [written(value) for value in values]
        kept = [text in self.wanted for text in texts]
        if not any(kept):
            there = sorted(set(texts))
            hint = did_you_mean(",".join(self.wanted), there)
            raise InputError(
                f"no cells left: none has {self.column} {quoted(self.wanted, ' or ')}",
                where=self.option,
                hint=hint or f"there are {quoted(there[:20])}",
            )
        return kept


def written(value: object) -> str:
    """Write a value as TOML does, without quotes, and None as `null`."""
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)
