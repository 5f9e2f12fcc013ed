"""What a comparison is made of: metrics, cells, tables."""

from dataclasses import dataclass

from kdbench.analysis.aggregate import MODES, CellGroup
from kdbench.analysis.compare.matching import Both
from kdbench.analysis.compare.places import Change, Place
from kdbench.analysis.estimates import Estimate
from kdbench.analysis.metrics import Metric
from kdbench.common.stats import ratio, ratio_interval


@dataclass(frozen=True)
class Compared:
    """One metric of one cell on both sides, in base units."""

    metric: Metric
    before: Estimate
    after: Estimate
    #: neither side's value differs from run to run, nor could it: any difference is a change, and
    #: there is no interval
    exact: bool
    modes: tuple[str, str] = ("", "")  #: whether each side was profiled or trained

    @property
    def no_ratio(self) -> str | None:
        """Why there is no ratio, though both sides have a number; None where there is one."""
        if self.modes[0] != self.modes[1]:
            return " against ".join(MODES.get(mode, mode) for mode in self.modes)
        marks = dict.fromkeys((*self.before.marks, *self.after.marks))
        if self.before.interval and self.after.interval:
            marks.pop("disagree", None)  # how far they do is in the ratio's own interval
        return ", ".join(marks) or None

    @property
    def ratio(self) -> float | None:
        """After over before; None where before is 0, or for `no_ratio`."""
        return None if self.no_ratio else ratio(self.after.value, self.before.value)

    @property
    def difference(self) -> float:
        """After minus before."""
        return self.after.value - self.before.value

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the ratio over processes; None if exact, or where there is none."""
        before, after = self.before.interval, self.after.interval
        if self.exact or self.no_ratio or before is None or after is None:
            return None
        return ratio_interval(self.after.value, after, self.before.value, before)

    @property
    def is_significant(self) -> bool:
        """Whether the two sides differ by more than chance."""
        if self.exact:
            return self.difference != 0
        interval = self.interval
        return interval is not None and not interval[0] <= 1 <= interval[1]

    @property
    def no_interval(self) -> str | None:
        """Why there is no interval; None where there is one, or need not be."""
        if self.exact or self.interval is not None:
            return None
        if self.no_ratio:
            return f"{self.no_ratio}: no ratio"
        if self.before.interval and self.after.interval:
            return "not positive: no interval"
        one, many = ("seed", "seeds") if self.metric.over_seeds else ("process", "processes")
        first, second = self.before.count, self.after.count
        each = f"{one if first == 1 else many} each" if first == second else f"and {second} {many}"
        return f"{first} {each}: no interval"


@dataclass(frozen=True, eq=False)
class Pair:
    """One cell on both sides."""

    name: str  #: its label, safe to print; with what tells it apart where cells share the label
    before: CellGroup
    after: CellGroup
    changed: tuple[Change, ...]  #: the settings that differ
    compared: tuple[Compared, ...]  #: the metrics that both sides have
    #: metrics that one side alone has, each with the side that has no value
    missing: tuple[tuple[Metric, str], ...]
    shared: bool  #: some run is on both sides


@dataclass(frozen=True, eq=False)
class Sheet:
    """One matrix in one place on both sides: what one table may hold."""

    matrices: tuple[str, str]  #: its name before and after
    places: tuple[Place, Place]  #: what its figures were taken on before and after
    changed: tuple[Change, ...]  #: how these places differ
    packages: tuple[Change, ...]  #: what else differs between the machines' software
    pairs: tuple[Pair, ...]
    only: Both  #: cells that the other side lacks
    unclear: tuple[Both, ...]  #: cells of each label of which it is not plain who is who


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two sides, set against each other."""

    names: tuple[str, str]  #: of the sides
    metrics: tuple[Metric, ...]  #: what was to be compared
    sheets: tuple[Sheet, ...]
    only: Both  #: cells of matrices or places that the other side does not have

    @property
    def count(self) -> int:
        """How many figures were compared; 0: nothing could be."""
        return sum(len(pair.compared) for sheet in self.sheets for pair in sheet.pairs)
