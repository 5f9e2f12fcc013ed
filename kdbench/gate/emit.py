"""Where a report goes: printed in one format, and written to files in others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from kdbench.common.errors import InputError, KdbenchError, os_reason, printable
from kdbench.gate import report_github
from kdbench.gate.messages import render, total
from kdbench.gate.report_files import as_json, as_junit

if TYPE_CHECKING:
    from kdbench.gate.findings import Report

FORMATS = ("table", "github", "json", "junit")


@dataclass(frozen=True, kw_only=True)
class Emitter:
    """Prints reports and writes them."""

    format: str  #: what is printed; one of `FORMATS`
    json: Path | None  #: file that gets the report as JSON; None: none does
    junit: Path | None  #: the same for JUnit's XML
    console: Console  #: where it is printed

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Show an error where the annotations go as well; it is raised all the same."""
        try:
            yield
        except KdbenchError as error:
            if self.format == "github":
                self._print(report_github.annotation("error", "kdbench check", [str(error)]))
            raise

    def report(self, report: Report) -> int:
        """Print and write a report; return the exit code."""
        for path, write in ((self.json, as_json), (self.junit, as_junit)):
            if path is not None:
                _write(path, write(report))
        if self.format == "table":
            for line in render(report):
                self.console.print(line, soft_wrap=True)
        elif self.format == "github":
            self._annotate(report)
        else:
            text = as_json(report) if self.format == "json" else as_junit(report)
            self._print(text.rstrip("\n"))
        return report.exit_code

    def _annotate(self, report: Report) -> None:
        lines = report_github.annotate(report)
        problem = report_github.add_summary(report_github.summary(report), os.environ)
        if problem is not None:
            lines.append(report_github.annotation("warning", "kdbench check", [problem]))
        for line in (*lines, printable(total(report))):
            self._print(line)

    def _print(self, text: str) -> None:
        """Print exactly this, neither wrapped nor coloured: programs read it."""
        self.console.file.write(f"{text}\n")


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the report: {os_reason(error)}", where=path) from None
