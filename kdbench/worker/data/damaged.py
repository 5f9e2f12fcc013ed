"""Pictures that cannot be used, told together: a data set is mended in one go, not one a run."""

from collections.abc import Sequence

from kdbench.common.errors import InputError

# More in one line, and nobody reads it.
_MOST = 10
_REMEDY = "replace them or take them out of the data set"

#: What is wrong with a picture: where it is, whose key names it, the problem, and what to do.
Problem = Sequence[str]


def problem_of(error: InputError, *, where: str, key: str) -> Problem:
    """Put an error about a picture into values that travel between processes."""
    return where, key, error.problem, error.hint or ""


class Damaged:
    """The first of the pictures that cannot be used."""

    def __init__(self) -> None:
        self._found: list[Problem] = []

    def add(self, found: Sequence[Problem]) -> None:
        """Note what is wrong with more pictures."""
        self._found += found

    @property
    def enough(self) -> bool:
        """Whether there are so many that looking for more is of no use."""
        return len(self._found) >= _MOST

    def check(self) -> None:
        """Raise an error of all that were noted, if any was.

        Raises:
            InputError: it names up to ten pictures.
        """
        if not self._found:
            return
        where, key, problem, hint = self._found[0]
        if len(self._found) == 1:
            raise InputError(problem, where=where, key=key, hint=hint or None)
        shown = "; ".join(f"{where}: {problem}" for where, _, problem, _ in self._found[:_MOST])
        count = f"at least {_MOST}" if self.enough else str(len(self._found))
        raise InputError(
            f"expected whole pictures, found {count} that are not: {shown}",
            key=key,
            hint=hint if hint and {hint} == {each[3] for each in self._found} else _REMEDY,
        )
