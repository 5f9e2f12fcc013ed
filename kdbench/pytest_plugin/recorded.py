"""What steps were recorded to need, in a text file beside the test, and the comparison with it.

The file is a gate's baseline that has steps for cells. The code behind `kdbench check` writes,
reads and compares it exactly, and names what grew by category and module.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from kdbench.common.errors import InputError, printable
from kdbench.gate.baseline import is_baseline, read_baseline, write_baseline
from kdbench.gate.compare import compare
from kdbench.gate.findings import Report
from kdbench.gate.messages import by_cell, describe_cell
from kdbench.gate.snapshot import About, Entry, Observed, Snapshot
from kdbench.spec.gated_metrics import Tolerance, Tolerances
from kdbench.spec.step_memory import StepMemory, parse_tolerance
from kdbench.store.schema import SCHEMA_VERSION

_UPDATE = "--kd-memory-update"


@dataclass(frozen=True)
class RecordComparison:
    """A step against its record."""

    failure: str = ""  #: why the test fails, in lines; empty: it passes
    note: str = ""  #: a remark on a test that passes; empty: none


class Record:
    """The figures of one test file's steps on one kind of device."""

    def __init__(self, test: Path, device: str) -> None:
        kind = device.partition(":")[0]  # test_train.py has test_train.kd_memory.cpu.txt
        self.path = test.with_name(f"{test.stem}.kd_memory.{kind}.txt")
        self._test = test.name

    def update(self, name: str, used: StepMemory) -> None:
        """Record a step beside the others in the file, unless that is something else."""
        about = _about(used, self._test)
        kept = self._kept(about) if self.path.exists() else {}
        note = f"What {self._test} compares its steps with; pytest {_UPDATE} writes it anew."
        write_baseline(self.path, Snapshot(about, {**kept, name: _entry(used)}), note)

    def compare(self, name: str, used: StepMemory, tolerance: float | str) -> RecordComparison:
        """Compare a step with its record; raises InputError if that is missing or damaged."""
        allowed = _tolerances(parse_tolerance(tolerance))
        before = self._read()
        recorded = {key: entry for key, entry in before.entries.items() if key == name}
        report = compare(
            Snapshot(before.about, recorded),
            Observed(Snapshot(_about(used, self._test), {name: _entry(used)})),
            allowed,
            baseline=self.path,
        )
        lines = _lines(report)
        if report.exit_code:
            head = f"{name}: {report.outcome}, against {self.path.name}"
            meant = f"if this is meant, record it: pytest {_UPDATE}"
            return RecordComparison(failure="\n".join([head, *lines, meant]))
        if lines:
            return RecordComparison(
                note=f"{name}: {'; '.join(lines)}; {_UPDATE} tightens {self.path.name}"
            )
        return RecordComparison()

    def _kept(self, about: About) -> Mapping[str, Entry]:
        """Return what stays when a step is recorded: nothing damaged or of another torch."""
        try:
            before = self._read()
        except InputError:
            if not is_baseline(self.path):
                raise
            return {}
        return before.entries if before.about == about else {}

    def _read(self) -> Snapshot:
        try:
            return read_baseline(self.path)
        except InputError as error:
            raise InputError(_in_pytest(str(error))) from None


def _about(used: StepMemory, test: str) -> About:
    return About(
        matrix=test,
        source="measured",
        schema_version=SCHEMA_VERSION,
        torch_version=used.torch_version,
        device=used.device.partition(":")[0],
        gpu_name=used.device_name,
    )


def _entry(used: StepMemory) -> Entry:
    metrics = {
        "allocated_peak_bytes": used.peak_bytes,
        "flops_step": used.flops,
        "operations_step": used.operations,
        "bytes_moved_step": used.bytes_moved,
    }
    return Entry(
        settings={},
        metrics={name: (value,) for name, value in metrics.items()},
        memory={part: {"steady": size} for part, size in used.held.items()},
    )


def _tolerances(allowed: Tolerance) -> Tolerances:
    """Allow a fraction of each figure, a size of the peak alone; a step here has no time."""
    work = Tolerance(fraction=allowed.fraction)
    return Tolerances(
        (
            ("allocated_peak_bytes", allowed),
            *((name, work) for name in ("flops_step", "operations_step", "bytes_moved_step")),
            ("step_seconds", Tolerance(off=True)),
        )
    )


def _lines(report: Report) -> list[str]:
    return [
        _in_pytest(line)
        for label, found in by_cell(report)
        for line in describe_cell(report, label, found)
    ]


def _in_pytest(text: str) -> str:
    """Name the option as it is called here."""
    return printable(text.replace("--update", _UPDATE))
