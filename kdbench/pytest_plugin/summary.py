"""The summary of measured steps at the end of a test run, after pytest-benchmark's times.

pytest-benchmark keeps `extra_info` in its files and shows none of it: its columns are times, also
where it compares. So its hooks take the bytes of saved runs from those files as it reads them.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from kdbench.common.errors import printable
from kdbench.common.units import MISSING, format_value
from kdbench.pytest_plugin.fixture import PROPERTY

_PEAK = "peak_bytes"
# Figures that are shown or reckoned with as numbers, also as `teacher.peak_bytes`.
_COUNTED = re.compile(r"(^|\.)(peak_bytes|flops|operations)$")
_HEAD = ("step", "peak", "bytes", "from then to now", "FLOPs", "operations")


@dataclass(frozen=True)
class Measured:
    """A step of a test, or of a saved run."""

    test: str  #: the test's node id
    step: str  #: the step's name; empty for a test's only one
    figures: Mapping[str, Any]  #: as `StepMemory.figures` returns them
    source: str = ""  #: the saved run, as pytest-benchmark calls it; empty for this run


class Summary:
    """Gathers what was measured and prints it; with xdist, in the process that the user sees."""

    def __init__(self, config: pytest.Config) -> None:
        self._asked = bool(config.getoption("kd_memory"))
        self._quiet = bool(config.getoption("benchmark_quiet", False))
        self._saved: list[Mapping[str, Mapping[str, Any]]] = []
        #: node id to the saved runs that have it, in the order of `_saved`
        self._sources: dict[str, list[str]] = {}
        self._benchmarks = False

    @pytest.hookimpl(optionalhook=True)
    def pytest_benchmark_compare_machine_info(self, compared_benchmark: Mapping[str, Any]) -> None:
        """Keep the figures of a saved run that pytest-benchmark compares with."""
        found = compared_benchmark["benchmarks"]
        self._saved.append({one["fullname"]: _valid(one.get("extra_info")) for one in found})

    @pytest.hookimpl(optionalhook=True, tryfirst=True)
    def pytest_benchmark_group_stats(self, benchmarks: Sequence[Mapping[str, Any]]) -> None:
        """Learn what the saved runs are called in the table of times; the grouping stays."""
        self._benchmarks = True
        for one in benchmarks:
            if one.get("path") is not None:
                self._sources.setdefault(one["fullname"], []).append(str(one["source"]))

    # first: a benchmark that got slower ends the summary, and this is to be seen all the same
    @pytest.hookimpl(tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print the steps, and the notes on them."""
        reported = list(_properties(terminalreporter))
        steps = [step for test, figures in reported for step in _steps(test, figures)]
        if steps and (self._asked or self._benchmarks) and not self._quiet:
            terminalreporter.section("kd_memory: one training step at its peak")
            for line in _table(self._rows(steps)):
                terminalreporter.write_line(printable(line))
        for test, figures in reported:
            if "note" in figures:
                terminalreporter.write_line(printable(f"{test}: {figures['note']}"))

    def _rows(self, steps: Sequence[Measured]) -> Iterator[tuple[str, ...]]:
        yield _HEAD
        for now in steps:
            saved = list(self._before(now))
            yield _row(now, "NOW" if saved else "", None)
            for before in saved:
                yield _row(before, _named(before, now), _growth(before, now))

    def _before(self, now: Measured) -> Iterator[Measured]:
        """Find the same step in the saved runs."""
        having = [saved[now.test] for saved in self._saved if now.test in saved]
        for source, info in zip(self._sources.get(now.test, ()), having, strict=False):
            figures = {step.step: step.figures for step in _steps(now.test, info)}
            if now.step in figures:
                yield Measured(now.test, now.step, figures[now.step], source)


def _properties(terminalreporter: pytest.TerminalReporter) -> Iterator[tuple[str, dict[str, Any]]]:
    """List what each test reported, by node id, in the order in which they ended."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport) and report.when == "call":
                figures = {
                    key.removeprefix(PROPERTY): value
                    for key, value in report.user_properties
                    if key.startswith(PROPERTY)
                }
                if figures:
                    yield report.nodeid, figures


def _steps(test: str, figures: Mapping[str, Any]) -> Iterator[Measured]:
    """Part the flat figures of a test, `peak_bytes` and `teacher.peak_bytes`, by step."""
    peaks = [key for key in figures if key == _PEAK or key.endswith(f".{_PEAK}")]
    for prefix in (key.removesuffix(_PEAK) for key in peaks):
        own = {key.removeprefix(prefix): v for key, v in figures.items() if key.startswith(prefix)}
        yield Measured(test, prefix.removesuffix("."), own)


def _valid(info: object) -> dict[str, Any]:
    """Keep what can be one of our figures: anybody may have written the file."""
    found = info if isinstance(info, dict) else {}
    return {
        key: value
        for key, value in found.items()
        if isinstance(key, str) and (isinstance(value, str) or _is_count(value))
        if not _COUNTED.search(key) or _is_count(value)
    }


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _named(before: Measured, now: Measured) -> str:
    """Name a saved run, and its torch where that was another: it may have needed other bytes."""
    version = before.figures.get("torch_version")
    other = version != now.figures.get("torch_version")
    return f"{before.source}, torch {version}" if other else before.source


def _row(step: Measured, source: str, growth: str | None) -> tuple[str, ...]:
    name = f"{step.test} {step.step}".strip() + (f" ({source})" if source else "")
    peak = step.figures[_PEAK]
    counts = (_count(step.figures.get("flops")), _count(step.figures.get("operations")))
    return name, format_value(peak, "bytes"), f"{peak:,}", growth or "", *counts


def _growth(before: Measured, now: Measured) -> str:
    then, peak = before.figures[_PEAK], now.figures[_PEAK]
    relative = f" ({peak / then - 1:+.2%})" if then else ""
    return f"{peak - then:+,}{relative}" if peak != then else "same"


def _count(value: Any) -> str:  # noqa: ANN401
    return MISSING if value is None else f"{value:,}"


def _table(rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """Set rows in columns: names at the left, numbers at the right."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # nothing was saved: no column of changes
    shown = [place for place, _ in enumerate(_HEAD) if place != 3 or any(r[3] for r in rows[1:])]
    for row in rows:
        cells = [
            row[place].rjust(widths[place]) if place else row[place].ljust(widths[place])
            for place in shown
        ]
        yield "  ".join(cells).rstrip()
