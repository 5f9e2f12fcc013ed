"""What a comparison found, and the exit code that follows from it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from kdbench.gate.memory_growth import Growth
from kdbench.spec.gated_metrics import GATED_METRICS

#: advice: reported, and decides nothing
Outcome = Literal[
    "failed", "regressed", "cannot-tell", "not-comparable", "improved", "advice", "held"
]
#: in the order of reports
OUTCOMES: tuple[Outcome, ...] = get_args(Outcome)
_WRONG: tuple[Outcome, ...] = ("failed", "regressed")
_OPEN: tuple[Outcome, ...] = ("cannot-tell", "not-comparable")


@dataclass(frozen=True)
class Finding:
    """One figure of one cell, or a cell as a whole, or all cells."""

    outcome: Outcome  #: what was found
    label: str | None = None  #: the cell; None: all of them
    metric: str | None = None  #: its name; None: the cell as a whole
    #: the baseline's value in base units; of times the median over processes
    before: float | None = None
    after: float | None = None  #: the value now
    message: str = ""  #: what to know, in a sentence; empty where the numbers say it
    #: what of the memory changed, where a peak regressed or improved
    growth: tuple[Growth, ...] = ()

    @property
    def unit(self) -> Literal["bytes", "seconds", "count"] | None:
        """Unit of both values; None for a cell as a whole."""
        metric = GATED_METRICS.get(self.metric or "")
        return metric.unit if metric else None

    @property
    def relative(self) -> float | None:
        """The growth as a fraction of the value before."""
        if self.before is None or self.after is None or self.before == 0:
            return None
        return self.after / self.before - 1


@dataclass(frozen=True)
class Report:
    """The outcome of one check."""

    title: str  #: what was compared with what
    matrix: str  #: the matrix's name
    baseline: str  #: the baseline's path
    labels: Sequence[str]  #: every cell, of the baseline and of now
    #: one for each figure compared, and for what could not be
    findings: Sequence[Finding]
    #: by label, the settings that are others than in the baseline: (before, after)
    changed: Mapping[str, Mapping[str, tuple[str | None, str | None]]] = field(default_factory=dict)
    notes: Sequence[str] = ()  #: what a reader should know

    @property
    def counts(self) -> Counter[Outcome]:
        """How many findings there are of each outcome."""
        return Counter(finding.outcome for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """0 held; 1 failed or regressed; 3 cannot tell, or nothing was compared."""
        counts = self.counts
        if any(counts[outcome] for outcome in _WRONG):
            return 1
        compared = counts["held"] + counts["improved"]
        return 3 if not compared or any(counts[outcome] for outcome in _OPEN) else 0

    @property
    def outcome(self) -> str:
        """What decides the exit code, in a word or two."""
        if self.counts["failed"] and not self.counts["regressed"]:
            return "failed"
        return {0: "held", 1: "regressed", 3: "cannot tell"}[self.exit_code]

    def of(self, label: str | None) -> list[Finding]:
        """Return the findings of one cell; None: those of all cells."""
        return [finding for finding in self.findings if finding.label == label]
