"""What can be measured on this machine, what cannot, and which columns that leaves null."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.common.environment import (
    built_for_other_cards,
    cache_folder,
    collect_environment,
    torch_build,
    user_cache,
)
from kdbench.common.errors import WorkerError, printable
from kdbench.common.memory_limits import memory_limit_bytes
from kdbench.runner.device import Probe, probe_torch
from kdbench.runner.machine_report import (
    FROM_NVML,
    Finding,
    card_findings,
    condition_findings,
    gib,
)
from kdbench.runner.telemetry.host import can_reset_peak
from kdbench.runner.telemetry.nvml import open_nvml

if TYPE_CHECKING:
    from rich.console import RenderableType

_FROM_CUDA = ("reserved_peak_bytes",)

_HUB = "https://huggingface.co"
_HUB_TIMEOUT_SECONDS = 3
# What a disk is tried with: a cell's rows are about as large.
_LEAST_ROOM = 1 << 20
# Some batches of a DataLoader's, ahead of a step; Docker's 64 MB hold a few of the smallest.
_ROOM_FOR_LOADERS = 2**30
_YES = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True)
class Report:
    """All findings, in the order in which they are shown."""

    findings: tuple[Finding, ...]


def examine_machine(
    results: Path | None = None,
    *,
    probe: Callable[[], Probe] = probe_torch,
    reaches: Callable[[str], str | None] | None = None,
    root: Path = Path("/"),
) -> Report:
    """Look at cards, driver, torch, processor, memory, hub and folders. Raises for nothing found.

    Args:
        results: the folder that runs would write to, if one is meant: no results are in it yet.
        probe: how torch is asked.
        reaches: returns why a URL does not answer, or None; a HEAD request unless given.
        root: of the file system that /proc and /sys are read from.
    """
    environment = collect_environment(None)
    with open_nvml() as nvml:
        findings = [*_machine(environment), *condition_findings(root), *card_findings(nvml)]
        findings.append(_torch(environment, probe, has_card=bool(nvml.gpus())))
    findings += [
        *_shared_memory(root / "dev/shm"),
        _host_peak(can=can_reset_peak()),
        _hub(reaches or _why_unreachable),
        *_caches(),
    ]
    if results is not None:
        folder = _folder("results", results)
        findings.append(replace(folder, found=f"{folder.found}; no results in it yet"))
    return Report(tuple(findings))


def examine_results_folder(results: Path) -> Report:
    """Say whether results can be written to, and nothing of the machine."""
    return Report((_folder("results", results),))


def _machine(environment: dict[str, Any]) -> list[Finding]:
    model, usable = environment["cpu_model"], environment["cpu_usable"]
    limit = memory_limit_bytes()
    total = environment["memory_bytes"]
    memory = gib(total)
    if limit is not None and limit < total:
        memory = f"{gib(limit)} for this container, of the machine's {memory}"
    return [
        Finding(
            "processor",
            f"{model or 'unknown'}: {environment['cpu_count']} threads, {usable} usable here",
            good=model is not None,
            null=() if model else ("cpu_model",),
        ),
        Finding("memory", memory),
    ]


def _torch(environment: dict[str, Any], probe: Callable[[], Probe], *, has_card: bool) -> Finding:
    installed = environment["torch_version"]
    if installed is None:
        return Finding("torch", "not installed", good=False, remedy="pip install torch")
    try:
        seen = probe()
    except WorkerError as error:
        return Finding("torch", f"{installed}, and {error}", good=False, remedy="reinstall torch")
    others = not seen["cuda_build"] and built_for_other_cards()
    build = f"CUDA {seen['cuda_build']}" if seen["cuda_build"] else "the CPU alone"
    build = torch_build() if others else build
    parts = [f"{seen['torch_version']}, built for {build}, {seen['threads']} threads"]
    parts += [f"cuda:{d['index']} is {d['name']} ({d['capability']})" for d in seen["devices"]]
    parts.append("computes in bf16" if seen["bf16"] else "bf16 is emulated, slowly")
    if seen["cuda_problem"]:
        parts.append(f"CUDA does not start: {seen['cuda_problem']}")
    # those of a ROCm build are called cuda too, and no run is on them
    devices = [] if others else seen["devices"]
    unused = has_card and not devices
    remedy = None
    if others:
        parts.append("kdbench was tried on NVIDIA's cards alone, and NVML tells of no others")
        remedy = "runs are on the CPU; for an NVIDIA card install a CUDA build of torch"
    if unused:
        remedy = "update the driver" if seen["cuda_build"] else "install a CUDA build of torch"
    null: tuple[str, ...] = () if devices else _FROM_CUDA
    if unused:  # the card is there, but no run will be on it
        null = (*_FROM_CUDA, *FROM_NVML)
    return Finding(
        "torch", "; ".join(parts), good=not unused and not others, null=null, remedy=remedy
    )


def _shared_memory(folder: Path) -> list[Finding]:
    """Look at what Linux keeps POSIX shared memory and semaphores in; others have no folder."""
    if platform.system() != "Linux":
        return []
    if not folder.is_dir():
        found, free = f"{folder} is not there", 0
    elif not os.access(folder, os.W_OK):
        found, free = f"{folder} cannot be written to", 0
    else:
        free = shutil.disk_usage(folder).free
        found = f"{folder}, {gib(free)} free"
    if free >= _ROOM_FOR_LOADERS:
        return [Finding("shared memory", found)]
    remedy = (
        "kdbench streams images without it; a DataLoader with workers in a step of your own may "
        "hang or die: docker run --shm-size=8g or --ipc=host, smaller batches, or num_workers=0"
    )
    return [Finding("shared memory", found, good=False, remedy=remedy)]


def _host_peak(*, can: bool) -> Finding:
    if can:
        return Finding("host memory's peak", "exact: the kernel's mark (VmHWM) can be reset")
    told = "polled: the kernel's mark (VmHWM) cannot be reset here"
    return Finding("host memory's peak", told, good=False, lower_bound=("host_peak_bytes",))


def _hub(why_not: Callable[[str], str | None]) -> Finding:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _YES:
        return Finding("hub", "not asked: HF_HUB_OFFLINE is set; only cached files are used")
    url = os.environ.get("HF_ENDPOINT") or _HUB
    problem = why_not(url)
    url = _without_password(url)
    if problem is None:
        return Finding("hub", f"{url} answers")
    remedy = "without it, use random weights or files that are cached already"
    return Finding("hub", f"{url} cannot be used: {problem}", good=False, remedy=remedy)


def _without_password(url: str) -> str:
    """Leave out who asks, and the password: what is printed here goes into reports."""
    return re.sub(r"//.*@", "//", url)


def _why_unreachable(url: str) -> str | None:
    try:
        if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
            return "expected an http or https address"
        request = urllib.request.Request(url, method="HEAD")  # noqa: S310 - checked above
        with urllib.request.urlopen(request, timeout=_HUB_TIMEOUT_SECONDS):  # noqa: S310
            return None
    except urllib.error.HTTPError as error:
        error.close()
        return f"it answers {error.code} {error.reason}"
    except urllib.error.URLError as error:
        return str(error.reason)
    # http.client has errors of its own, for answers that are not HTTP
    except Exception as error:  # noqa: BLE001 - whatever a network does is a finding
        return str(error) or type(error).__name__


def _caches() -> list[Finding]:
    """Find the folder of fitted teachers, and the hub's own."""
    home = os.environ.get("HF_HOME") or user_cache() / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    return [_folder("cache", cache_folder()), _folder("hub's cache", hub)]


def _folder(name: str, folder: Path) -> Finding:
    folder = Path(os.path.expanduser(folder)).absolute()  # noqa: PTH111 - there may be no home
    # A folder that is not there yet is judged by the one it would be created in.
    there = next((f for f in (folder, *folder.parents) if f.exists()), folder)
    try:
        # Asking for permission is not enough: a read-only mount, or /proc, refuses only the try,
        # and a full disk only what is written.
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(_LEAST_ROOM))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        return Finding(name, f"{folder} cannot be written to: {why}", good=False)
    new = "" if there == folder else " (not there yet)"
    return Finding(name, f"{folder}{new}, {gib(shutil.disk_usage(there).free)} free")


def render(report: Report) -> RenderableType:
    """Return the report for a terminal, readable at 80 columns and without colours."""
    from rich.table import Table  # noqa: PLC0415 - only whoever prints needs it
    from rich.text import Text  # noqa: PLC0415

    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(ratio=1, max_width=24)
    table.add_column(ratio=3, overflow="fold")
    for finding in report.findings:
        mark = Text("ok", "green") if finding.good else Text("!!", "bold yellow")
        table.add_row(mark, Text(finding.name, "bold"), Text(printable(finding.found)))
        for label, columns in (("null", finding.null), ("lower bound", finding.lower_bound)):
            if columns:
                table.add_row("", "", Text(f"{label}: {', '.join(columns)}", "dim"))
        if finding.remedy:
            table.add_row("", "", Text(printable(f"-> {finding.remedy}")))
    return table
