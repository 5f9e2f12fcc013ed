"""What this machine can measure, what it cannot, and which columns stay null as a result."""

from __future__ import annotations

import os
import platform
import re
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.common.environment import (
    built_for_other_cards,
    cache_folder,
    collect_environment,
    torch_build,
    user_cache,
)
from kdbench.common.errors import WorkerError, os_reason, printable
from kdbench.common.memory_limits import memory_limit_bytes
from kdbench.runner.device import Probe, probe_torch
from kdbench.runner.machine_report import (
    NVML_COLUMNS,
    Finding,
    card_findings,
    condition_findings,
    gib,
)
from kdbench.runner.telemetry.host import can_reset_peak
from kdbench.runner.telemetry.nvml import open_nvml

if TYPE_CHECKING:
    from rich.console import RenderableType

_CUDA_COLUMNS = ("reserved_peak_bytes",)

_HUB = "https://huggingface.co"
_HUB_TIMEOUT_SECONDS = 3
# How much is written to try a disk: about the size of a cell's rows.
_TRIAL_BYTES = 1 << 20
# A DataLoader keeps some batches ahead of a step; Docker's default of 64 MB holds very few.
_LOADER_BYTES = 2**30
_YES = ("1", "ON", "YES", "TRUE")


def examine_machine(
    results: Path | None = None,
    *,
    probe: Callable[[], Probe] = probe_torch,
    reaches: Callable[[str], str | None] | None = None,
    root: Path = Path("/"),
) -> list[Finding]:
    """Check cards, driver, torch, processor, memory, hub and folders; problems are findings.

    `results` is the folder that runs would write to, if it holds no results yet. `reaches` returns
    why a URL does not answer, or None.
    """
    environment = collect_environment(None)
    with open_nvml() as nvml:
        findings = [*_processor(environment), *condition_findings(root), *card_findings(nvml)]
        findings.append(_torch(environment, probe, has_card=bool(nvml.gpus())))
    findings += [
        *_shared_memory(root / "dev/shm"),
        _host_peak(),
        _hub(reaches or _why_unreachable),
        *_caches(),
    ]
    if results is not None:
        folder = _folder("results", results)
        findings.append(replace(folder, found=f"{folder.found}; no results in it yet"))
    return findings


def examine_results_folder(results: Path) -> list[Finding]:
    """Check whether results can be written to, and nothing of the machine."""
    return [_folder("results", results)]


def _processor(environment: dict[str, Any]) -> list[Finding]:
    model, usable = environment["cpu_model"], environment["cpu_usable"]
    limit, total = memory_limit_bytes(), environment["memory_bytes"]
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
    cuda = seen["cuda_build"]
    other_cards = not cuda and built_for_other_cards()
    build = torch_build() if other_cards else f"CUDA {cuda}" if cuda else "the CPU alone"
    parts = [f"{seen['torch_version']}, built for {build}, {seen['threads']} threads"]
    parts += [f"cuda:{d['index']} is {d['name']} ({d['capability']})" for d in seen["devices"]]
    parts.append("computes in bf16" if seen["bf16"] else "bf16 is emulated, slowly")
    if seen["cuda_problem"]:
        parts.append(f"CUDA does not start: {seen['cuda_problem']}")
    # a ROCm build calls its devices cuda too, but no run uses them
    devices = [] if other_cards else seen["devices"]
    unused = has_card and not devices
    remedy = None
    if other_cards:
        parts.append("kdbench was tried on NVIDIA's cards alone, and NVML tells of no others")
        remedy = "runs are on the CPU; for an NVIDIA card install a CUDA build of torch"
    if unused:
        remedy = "update the driver" if cuda else "install a CUDA build of torch"
    null = (*(() if devices else _CUDA_COLUMNS), *(NVML_COLUMNS if unused else ()))
    good = not unused and not other_cards
    return Finding("torch", "; ".join(parts), good=good, null=null, remedy=remedy)


def _shared_memory(folder: Path) -> list[Finding]:
    """Check POSIX shared memory, which is a folder on Linux only."""
    if platform.system() != "Linux":
        return []
    if not folder.is_dir():
        found, free = f"{folder} is not there", 0
    elif not os.access(folder, os.W_OK):
        found, free = f"{folder} cannot be written to", 0
    else:
        free = shutil.disk_usage(folder).free
        found = f"{folder}, {gib(free)} free"
    if free >= _LOADER_BYTES:
        return [Finding("shared memory", found)]
    remedy = (
        "kdbench streams images without it; a DataLoader with workers in a step of your own may "
        "hang or die: docker run --shm-size=8g or --ipc=host, smaller batches, or num_workers=0"
    )
    return [Finding("shared memory", found, good=False, remedy=remedy)]


def _host_peak() -> Finding:
    name = "host memory's peak"
    if can_reset_peak():
        return Finding(name, "exact: the kernel's mark (VmHWM) can be reset")
    found = "polled: the kernel's mark (VmHWM) cannot be reset here"
    return Finding(name, found, good=False, lower_bound=("host_peak_bytes",))


def _hub(why_not: Callable[[str], str | None]) -> Finding:
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in _YES:
        return Finding("hub", "not asked: HF_HUB_OFFLINE is set; only cached files are used")
    url = os.environ.get("HF_ENDPOINT") or _HUB
    problem = why_not(url)
    url = re.sub(r"//.*@", "//", url)  # people paste this into reports: no user or password
    if problem is None:
        return Finding("hub", f"{url} answers")
    remedy = "without it, use random weights or files that are cached already"
    return Finding("hub", f"{url} cannot be used: {problem}", good=False, remedy=remedy)


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
    except Exception as error:  # noqa: BLE001 - http.client has errors of its own
        return str(error) or type(error).__name__


def _caches() -> list[Finding]:
    home = os.environ.get("HF_HOME") or user_cache() / "huggingface"
    hub = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    return [_folder("cache", cache_folder()), _folder("hub's cache", hub)]


def _folder(name: str, folder: Path) -> Finding:
    folder = Path(os.path.expanduser(folder)).absolute()  # noqa: PTH111 - there may be no home
    # A folder that does not exist yet is judged by its nearest parent.
    there = next((f for f in (folder, *folder.parents) if f.exists()), folder)
    try:
        # Permissions do not tell enough: a read-only mount refuses an open, a full disk a write.
        with tempfile.TemporaryFile(dir=there) as file:
            file.write(bytes(_TRIAL_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        found = f"{folder} cannot be written to: {os_reason(error)}"
        return Finding(name, found, good=False)
    new = "" if there == folder else " (not there yet)"
    return Finding(name, f"{folder}{new}, {gib(shutil.disk_usage(there).free)} free")


def render(findings: Sequence[Finding]) -> RenderableType:
    """Return findings for a terminal, readable at 80 columns and without colours."""
    from rich.table import Table  # noqa: PLC0415 - needed only to print
    from rich.text import Text  # noqa: PLC0415

    table = Table.grid(padding=(0, 1))
    table.add_column()
    table.add_column(ratio=1, max_width=24)
    table.add_column(ratio=3, overflow="fold")
    for finding in findings:
        mark = Text("ok", "green") if finding.good else Text("!!", "bold yellow")
        table.add_row(mark, Text(finding.name, "bold"), Text(printable(finding.found)))
        for label, columns in (("null", finding.null), ("lower bound", finding.lower_bound)):
            if columns:
                table.add_row("", "", Text(f"{label}: {', '.join(columns)}", "dim"))
        if finding.remedy:
            table.add_row("", "", Text(printable(f"-> {finding.remedy}")))
    return table
